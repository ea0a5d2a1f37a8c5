"""Anomaly scores of images, and how well they detect the class that was held out.

Anomalies are the positives. The measures are the areas under the precision-recall curve (average precision) and under
the ROC curve, for the joint score and for each of its parts. Shapes: N images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.data.chunks import CHUNK_SAMPLES, Chunk
from ebmscale.errors import DataError, DivergenceError
from ebmscale.evaluate.images import ImageSet, chunk_seed
from ebmscale.evaluate.measure import ROW, Tensors, in_order, stacked
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.pixels import to_pixels

LABEL = "label"
MAIN_SCORE = "ratio"
"""The score to use first. It found held-out digits best, on digits that no test uses (configs/compare/README.md)."""


@dataclass(frozen=True)
class ScoredChunk:
    """The keys, labels (N,) and scores of a chunk. Every score is (N,) float64, by its name."""

    index: int
    keys: list[str]
    labels: Tensor
    scores: dict[str, Tensor]


def score_chunks(model: LatentModel, images: ImageSet, seed: int) -> Iterator[ScoredChunk]:
    """The scores of this rank's chunks. The noise of a chunk depends only on the seed and the number of the chunk.

    Raises:
        DivergenceError: a score is not finite.
    """
    for chunk in images.chunks():
        yield _score(model, chunk, seed)


def _score(model: LatentModel, chunk: Chunk, seed: int) -> ScoredChunk:
    found = model.score(to_pixels(chunk.images), chunk_seed(seed, chunk.index))
    scores = {part: values.double() for part, values in found._asdict().items()}
    for part, values in scores.items():
        if not values.isfinite().all():
            raise DivergenceError(
                f"The {part} score of {chunk.keys[int((~values.isfinite()).nonzero()[0])]} is not finite; the model "
                "has diverged, so evaluate an earlier checkpoint or train again at a lower step_size."
            )
    return ScoredChunk(chunk.index, chunk.keys, chunk.labels, scores)


def percentiles(scores: Tensor, reference: Tensor) -> Tensor:
    """The percentage (N,) of a reference (M,) with a lower score than each score (N,). Ties count half."""
    ordered = reference.sort().values
    below = torch.searchsorted(ordered, scores, side="left")
    not_above = torch.searchsorted(ordered, scores, side="right")
    return 50 * (below + not_above).double() / len(reference)


def score_images(model: LatentModel, images: ImageSet, seed: int) -> dict[str, Tensor]:
    """Every score (N,) of images by name, in their order (collective)."""
    gathered = _gathered(model, images, seed)
    return {name: _joined(gathered, name) for name in gathered[0].scores}


@dataclass(frozen=True)
class Detection:
    """AUPRC and AUROC of every score, with the counts and the prevalence; a `measure.Measure`."""

    model: LatentModel
    seed: int

    def part(self, images: ImageSet) -> Tensors:
        """Labels (N,) and scores (N,) by name.

        Raises:
            DivergenceError: a score is not finite.
        """
        return stacked([
            {ROW: chunk.index * CHUNK_SAMPLES + torch.arange(len(chunk.labels)), LABEL: chunk.labels} | chunk.scores
            for chunk in score_chunks(self.model, images, self.seed)
        ])  # fmt: skip

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """The areas.

        Raises:
            DataError: the images are all normal or all anomalies.
        """
        assert images.anomalous is not None
        names = [name for name in next(part for part in parts if part) if name not in (ROW, LABEL)]
        is_anomaly = in_order(parts, LABEL).eq(images.anomalous)
        return detection({name: in_order(parts, name) for name in names}, is_anomaly)


def detection(scores: dict[str, Tensor], is_anomaly: Tensor) -> dict[str, float]:
    """`auprc_NAME` and `auroc_NAME` of every score, with the counts and the prevalence, which is the AUPRC of chance.

    Args:
        scores: (N,) by name. A higher score means more anomalous.
        is_anomaly: (N,) booleans.

    Raises:
        DataError: there are no anomalies, or only anomalies.
    """
    num_anomalies = int(is_anomaly.sum())
    if num_anomalies in (0, len(is_anomaly)):
        raise DataError(
            f"{num_anomalies} of the {len(is_anomaly)} images are anomalies; detection is measured on images of both "
            "kinds, so choose the test split of a set that has them."
        )
    values = {f"auprc_{part}": average_precision(score, is_anomaly) for part, score in scores.items()}
    values |= {f"auroc_{part}": roc_area(score, is_anomaly) for part, score in scores.items()}
    counts = {"num_anomalies": float(num_anomalies), "num_normal": float(len(is_anomaly) - num_anomalies)}
    return values | counts | {"prevalence": num_anomalies / len(is_anomaly)}


def average_precision(score: Tensor, is_positive: Tensor) -> float:
    """Area under the precision-recall curve: the sum of precision times the step in recall, over scores (N,)."""
    from torchmetrics.functional.classification import binary_average_precision  # noqa: PLC0415 (slow to import)

    return float(binary_average_precision(_ranks(score), is_positive.long()))


def roc_area(score: Tensor, is_positive: Tensor) -> float:
    """Area under the ROC curve: how often a positive has the higher score (N,). Ties count half."""
    from torchmetrics.functional.classification import binary_auroc  # noqa: PLC0415 (slow to import)

    return float(binary_auroc(_ranks(score), is_positive.long()))


def _ranks(score: Tensor) -> Tensor:
    """Scores in [0, 1] in the same order. Equal scores stay equal.

    The areas depend on the order alone. torchmetrics applies a sigmoid to scores outside [0, 1], and large scores would
    all become 1.
    """
    values, places = score.unique(return_inverse=True)
    return places.double() / max(len(values) - 1, 1)


def _gathered(model: LatentModel, images: ImageSet, seed: int) -> list[ScoredChunk]:
    """The scored chunks of all ranks in their order (collective)."""
    own = list(score_chunks(model, images, seed))
    gathered = [chunk for part in images.world.gather_objects(own) for chunk in part]
    return sorted(gathered, key=lambda chunk: chunk.index)


def _joined(chunks: list[ScoredChunk], part: str) -> Tensor:
    return torch.cat([chunk.scores[part] for chunk in chunks])
