"""Streams from plain settings, for tests."""

from typing import Any

from ebmscale.config import HeldOutBlock
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import NOTHING_HELD_OUT, VALIDATION_FRACTION, select
from ebmscale.data.stream import Batching, ImageStream
from ebmscale.storage import Storage


def image_stream(
    storage: Storage,
    manifest: Manifest,
    *,
    split: str = "train",
    batch_size: int,
    seed: int,
    num_streams: int,
    window: int,
    validation_fraction: float = VALIDATION_FRACTION,
    held_out: HeldOutBlock = NOTHING_HELD_OUT,
    **others: Any,
) -> ImageStream:
    """An `ImageStream` of a split; `others` are its keyword arguments."""
    batching = Batching(batch_size, seed, num_streams, window)
    return ImageStream(storage, manifest, select(manifest, split, validation_fraction, held_out), batching, **others)
