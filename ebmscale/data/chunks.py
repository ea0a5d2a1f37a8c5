"""Splits for evaluation: in chunks, which are divided among the workers, or whole.

The content of a chunk depends on the set and on the limit alone, so a result that is computed chunk by chunk is the
same on any number of workers. Shapes: N samples of a split, B of a chunk, C H W image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebmscale.config import HeldOutBlock
from ebmscale.data.choose import lowest
from ebmscale.data.found import Found
from ebmscale.data.manifest import Manifest
from ebmscale.data.reader import ShardReader
from ebmscale.data.split import NOTHING_HELD_OUT, VALIDATION_FRACTION, Split, select
from ebmscale.errors import DataError
from ebmscale.storage import Storage

CHUNK_SAMPLES = 500
READ_TOGETHER = 4096  # samples that `read_samples` reads at once


@dataclass(frozen=True)
class Chunk:
    """Samples that are evaluated together.

    Attributes:
        index: of the chunk, counted over all workers.
        images: (B, C, H, W) of the manifest's dtype.
        labels: (B,) int64, -1 if none.
        keys: B keys.
    """

    index: int
    images: Tensor
    labels: Tensor
    keys: list[str]


def iter_chunks(
    storage: Storage,
    manifest: Manifest,
    split: Split,
    rank: int = 0,
    size: int = 1,
    chunk_samples: int = CHUNK_SAMPLES,
    numbers: range | None = None,
) -> Iterator[Chunk]:
    """The chunks `rank, rank + size, ...` of a split, in the manifest's order, one in memory at a time.

    With `numbers`, only chunks with these numbers are shared out.

    Raises:
        DataError: a shard or its index is missing or damaged, or a sample is damaged.
    """
    reader = ShardReader(storage, manifest)
    for index in (numbers or range(-(-len(split) // chunk_samples)))[rank::size]:
        first = index * chunk_samples
        found = split.find(np.arange(first, min(first + chunk_samples, len(split))))
        images = _read_sound(reader, storage, manifest, found)
        yield Chunk(index, torch.from_numpy(images), torch.from_numpy(found.labels), found.texts())


def read_split(
    storage: Storage,
    manifest: Manifest,
    split: str,
    limit: int | None = None,
    validation_fraction: float = VALIDATION_FRACTION,
    held_out: HeldOutBlock = NOTHING_HELD_OUT,
) -> tuple[Tensor, Tensor, list[str]]:
    """A whole split, or `limit` samples of it, in memory.

    The order is that of the keys' hashes: always the same, and unrelated to how the set is sorted, so that the first
    `limit` samples stand for the split.

    Returns:
        images (N, C, H, W) of the manifest's dtype, labels (N,) int64 (-1 if none), and N keys.

    Raises:
        DataError: an empty split, a missing shard, or a damaged sample.
    """
    found = lowest(select(manifest, split, validation_fraction, held_out), limit)
    return read_samples(storage, manifest, found), torch.from_numpy(found.labels), found.texts()


def read_samples(storage: Storage, manifest: Manifest, found: Found) -> Tensor:
    """The images of samples, (N, C, H, W) of the manifest's dtype.

    Raises:
        DataError: a missing shard, or a damaged sample.
    """
    images = np.empty((len(found), *manifest.image_shape), manifest.dtype)
    reader = ShardReader(storage, manifest)
    in_file_order = np.lexsort((found.offsets, found.shards))
    for first in range(0, len(found), READ_TOGETHER):
        places = in_file_order[first : first + READ_TOGETHER]
        images[places] = _read_sound(reader, storage, manifest, found.at(places))
    return torch.from_numpy(images)


def _read_sound(reader: ShardReader, storage: Storage, manifest: Manifest, found: Found) -> np.ndarray:
    images, sound = reader.read(found)
    if not sound.all():
        raise DataError(
            f"Shard {storage.url_of(manifest.shards[found.shards[~sound][0]].file)} has damaged samples; "
            f"check the set with `ebmscale inspect --verify {storage.url}` and pack it again."
        )
    return images
