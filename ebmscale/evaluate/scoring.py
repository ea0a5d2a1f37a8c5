"""Scores of the reference images, with which new images are compared.

Shapes: M images of the reference.
"""

import torch
from torch import Tensor

from ebmscale.data.manifest import Manifest
from ebmscale.errors import ConfigError, DataError, StorageError
from ebmscale.evaluate.anomaly import MAIN_SCORE, detection, percentiles, score_images
from ebmscale.evaluate.images import ImageSet, Progress, measured_split, open_all_images, open_images
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.run_folder import data_of
from ebmscale.storage import Storage
from ebmscale.world import World

MOST_IMAGES = 1000  # of the reference
UNLIKELY = 99
"""Percentile of held-out images above which an image counts as unlikely."""


def held_out_scores(
    model: LatentModel, seed: int, world: World, progress: Progress = lambda done, total, unit: None
) -> Tensor | None:
    """`MAIN_SCORE` (M,) of held-out images of the run; None if its data set cannot be read (collective)."""
    try:
        data = data_of(model.config, "give its address")
        images = open_images(model, data, measured_split(model, data), world, MOST_IMAGES, progress=progress)
        return score_images(model, images, seed)[MAIN_SCORE]
    except (ConfigError, DataError, StorageError):
        return None


def normal_scores(
    model: LatentModel,
    storage: Storage,
    seed: int,
    world: World,
    progress: Progress = lambda done, total, unit: None,
) -> dict[str, Tensor]:
    """Every score (M,) of a set of normal images by name (collective).

    If the run was trained on this set, only held-out images are scored. Of any other set, all images are scored.

    Raises:
        DataError: there is no such set, or it has another shape.
    """
    return score_images(model, _normal_images(model, storage, world, progress), seed)


def against_normal(scores: dict[str, Tensor], normal: dict[str, Tensor]) -> dict[str, float]:
    """`anomaly.detection` with the images of `scores` (N,) as the anomalies and those of `normal` (M,) as the rest."""
    both = {name: torch.cat([scores[name], normal[name]]) for name in scores}
    num = len(next(iter(scores.values())))
    return detection(both, torch.arange(len(next(iter(both.values())))) < num)


def unlikely_share(scores: Tensor, reference: Tensor) -> float:
    """The share of scores (N,) above the percentile `UNLIKELY` of a reference (M,)."""
    return float((percentiles(scores, reference) > UNLIKELY).double().mean())


def _normal_images(model: LatentModel, storage: Storage, world: World, progress: Progress) -> ImageSet:
    try:
        trained_on = Manifest.load(data_of(model.config, "give its address")).identity()
    except (DataError, StorageError):
        trained_on = None
    if Manifest.load(storage).identity() == trained_on:
        return open_images(model, storage, measured_split(model, storage), world, progress=progress)
    return open_all_images(model, storage, world, progress)
