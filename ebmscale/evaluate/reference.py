"""A cache of the features of the images that samples are compared with. It lies beside a data set or in a run.

    SET/features/NAME-SPLIT-DIGEST.safetensors

The digest covers everything that the features depend on: the network, the data set, and the images chosen from it. If a
file is damaged, the features are computed again. Shapes: N points, F features.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from ebmscale.errors import DamagedError, NotFoundError, StorageError
from ebmscale.evaluate.features import Features
from ebmscale.evaluate.frechet import Moments
from ebmscale.evaluate.images import ImageSet
from ebmscale.model.pieces import parse_tensors
from ebmscale.storage import Storage
from ebmscale.stored import read_file

FOLDER = "features"
LIMIT_BYTES = 1 << 30
KEYS_TOGETHER = 1 << 16


@dataclass(frozen=True)
class Reference:
    """Moments and points (N, F) of the features of images."""

    moments: Moments
    points: Tensor


def reference_of(
    images: ImageSet, features: Features, places: Sequence[Storage], compute: Callable[[], Reference]
) -> Reference:
    """The reference from the first place that has it (collective).

    Rank 0 reads. If it finds nothing, all ranks compute the reference, and it is saved at the first writable place.

    Args:
        images: the images.
        features: the network.
        places: where references are cached, such as the storage of the set and that of the run.
        compute: computes the reference (collective).
    """
    world, file, found = images.world, "", None
    if world.is_first:
        file = _file(images, features)
        found = next((one for one in (_read(place, file, features.num_features) for place in places) if one), None)
    found = world.broadcast(found)
    if found is not None:
        return Reference(Moments.of(found["count"], found["mean"], found["scatter"]), found["points"])
    reference = compute()
    if world.is_first:
        _keep(reference, places, file)
    return reference


def _file(images: ImageSet, features: Features) -> str:
    chosen, num = hashlib.sha256(), len(images.selection)
    for first in range(0, num, KEYS_TOGETHER):
        found = images.selection.find(np.arange(first, min(first + KEYS_TOGETHER, num)))
        chosen.update("".join(f"{key}\n" for key in found.texts()).encode())
    parts = [features.sha256, images.manifest.identity(), chosen.hexdigest()]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return f"{FOLDER}/{features.name}-{images.split}-{digest}.safetensors"


def _read(place: Storage, file: str, num_features: int) -> dict[str, Tensor] | None:
    """The tensors of a reference; None if the file does not exist or is damaged."""
    try:
        if not place.exists(file):
            return None
        found = parse_tensors(place.url_of(file), read_file(place, file, LIMIT_BYTES))
    except (NotFoundError, StorageError, DamagedError):
        return None
    shapes = {"count": (), "mean": (num_features,), "scatter": (num_features, num_features)}
    fits = all(name in found and tuple(found[name].shape) == shape for name, shape in shapes.items())
    points = found.get("points")
    fits = fits and points is not None and points.dim() == 2 and points.shape[1] == num_features
    return found if fits and all(bool(value.isfinite().all()) for value in found.values()) else None


def _keep(reference: Reference, places: Sequence[Storage], file: str) -> None:
    moments = reference.moments
    tensors = {
        "count": torch.tensor(float(moments.count), dtype=torch.float64),
        "mean": moments.mean,
        "scatter": moments.scatter,
        "points": reference.points.contiguous(),
    }
    data = save_tensors(tensors)
    for place in places:
        with suppress(StorageError):  # the storage of a set may be read-only
            place.publish(file, data)
            return
