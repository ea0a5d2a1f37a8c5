"""Simple detectors of anomalies, fitted to the images that a model was trained on, and scored on the same images as it.

They show what the model adds. Each is fitted to pixels in [-1, 1], and to the model's latents at the encoder's mean,
or where its chain ends. Their settings are the usual ones; nothing is chosen on anomalies.

| name | score |
|---|---|
| knn | mean distance to the 5 nearest training points |
| pca | squared distance to the subspace that holds 90 % of the variance (pixels only) |
| forest | isolation forest of 100 trees (Liu et al. 2008) |
| svm | one-class SVM with nu = 0.1 and the Gaussian kernel of scikit-learn's default width, on 5,000 training points |

Shapes: N points, M training points, D coordinates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ebmscale.data.chunks import CHUNK_SAMPLES
from ebmscale.errors import DataError
from ebmscale.evaluate.anomaly import LABEL, detection
from ebmscale.evaluate.images import ImageSet, chunk_seed
from ebmscale.evaluate.measure import ROW, Tensors, in_order, stacked
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.pixels import to_pixels
from ebmscale.seeds import derive
from ebmscale.world import World

MOST_TRAINING, MOST_OF_SVM = 20_000, 5_000
NEIGHBOURS, VARIANCE, TREES, NU = 5, 0.9, 100, 0.1
ROWS_AT_ONCE = 500
LEAST = 20  # training points

Score = Callable[[Tensor], Tensor]
"""Scores (N,) in float64 of points (N, D); higher is more anomalous."""


@dataclass(frozen=True)
class Baselines:
    """AUPRC and AUROC of every baseline, `auprc_pixels_knn` and so on; a `measure.Measure`.

    Attributes:
        model: gives the latents.
        seed: of the chains, the trees and the choice of training points.
        training: the images that the model was trained on.
    """

    model: LatentModel
    seed: int
    training: ImageSet

    def part(self, images: ImageSet) -> Tensors:
        """Labels (N,) and scores (N,) by name. Every rank fits the baselines, with the same result.

        Raises:
            DataError: there are too few training images.
        """
        whole = replace(self.training, world=World.alone())
        points = [self._points(chunk.images, chunk.index) for chunk in whole.chunks()]
        if sum(len(pixels) for pixels, _ in points) < LEAST:
            raise DataError(f"Baselines need at least {LEAST} training images, and there are {len(self.training)}.")
        pixels, latents = (torch.cat(side) for side in zip(*points, strict=True))
        seed = derive(self.seed, "baselines") % 2**31
        on_pixels = {f"pixels_{name}": score for name, score in fitted(pixels, seed).items()}
        on_latents = {f"latents_{name}": score for name, score in fitted(latents, seed).items() if name != "pca"}
        rows = []
        for chunk in images.chunks():
            x, z = self._points(chunk.images, chunk.index)
            scores = {name: score(x) for name, score in on_pixels.items()}
            scores |= {name: score(z) for name, score in on_latents.items()}
            numbers = chunk.index * CHUNK_SAMPLES + torch.arange(len(chunk.labels))
            rows.append({ROW: numbers, LABEL: chunk.labels} | scores)
        return stacked(rows)

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """The areas.

        Raises:
            DataError: the images are all normal or all anomalies.
        """
        names = [name for name in next(part for part in parts if part) if name not in (ROW, LABEL)]
        is_anomaly = in_order(parts, LABEL).eq(images.anomalous if images.anomalous is not None else -1)
        return detection({name: in_order(parts, name) for name in names}, is_anomaly)

    def _points(self, images: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Pixels (N, D) and latents (N, Z) of the images of a chunk."""
        x = to_pixels(images)
        return x.flatten(1), self.model.infer(x, chunk_seed(self.seed, index), at_mean=True)[0]


def fitted(points: Tensor, seed: int) -> dict[str, Score]:
    """Every baseline, fitted to training points (M, D)."""
    from sklearn.decomposition import PCA  # noqa: PLC0415 (slow to import)
    from sklearn.ensemble import IsolationForest  # noqa: PLC0415
    from sklearn.svm import OneClassSVM  # noqa: PLC0415

    rows = points.numpy()
    subspace = PCA(n_components=VARIANCE, svd_solver="covariance_eigh").fit(rows)
    forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(rows)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:MOST_OF_SVM]
    machine = OneClassSVM(nu=NU).fit(rows[chosen])

    def off_subspace(z: Tensor) -> Tensor:
        again = subspace.inverse_transform(subspace.transform(z.numpy()))
        return torch.from_numpy(again - z.numpy()).double().square().sum(1)

    return {
        "knn": lambda z: neighbour_distance(z, points),
        "pca": off_subspace,
        "forest": lambda z: torch.from_numpy(-forest.score_samples(z.numpy())).double(),
        "svm": lambda z: torch.from_numpy(-machine.score_samples(z.numpy())).double(),
    }


def neighbour_distance(z: Tensor, points: Tensor, num: int = NEIGHBOURS) -> Tensor:
    """The mean distance (N,) of points z (N, D) to their nearest training points (M, D)."""
    nearest = [torch.cdist(part, points).topk(num, largest=False).values for part in z.split(ROWS_AT_ONCE)]
    return torch.cat(nearest).double().mean(1)
