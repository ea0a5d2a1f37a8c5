"""A cache of the features of the images that samples are compared with. It lies beside a data set or in a run.

    SET/features/NAME-SPLIT-DIGEST.safetensors

The digest covers everything that the features depend on: the network, the data set, and the images chosen from it. If a
file is damaged, the features are computed again. Shapes: N points, F features.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
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


def find_reference(images: ImageSet, features: Features, places: Sequence[Storage]) -> Reference | None:
    """The reference from the first place that has it; None if there is none. Rank 0 reads (collective).

    Args:
        images: the images.
        features: the network.
        places: where references are kept, such as the storage of the set and that of the run.
    """
    world, found = images.world, None
    if world.is_first and places:
        file = _file(images, features)
        found = next((one for one in (_read(place, file, features.num_features) for place in places) if one), None)
    found = world.broadcast(found)
    if found is None:
        return None
    return Reference(Moments.of(found["count"], found["mean"], found["scatter"]), found["points"])


def keep_reference(reference: Reference, images: ImageSet, features: Features, places: Sequence[Storage]) -> None:
    """Keeps a reference at the first of the places that can be written."""
    if not places:
        return
    file, data = _file(images, features), save_tensors(reference.moments.tensors() | {"points": reference.points})
    for place in places:
        with suppress(StorageError):  # a set may be at a read-only place
            place.publish(file, data)
            return


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
