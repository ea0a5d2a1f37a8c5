"""A split in chunks, for evaluation. It is read once from end to end, and the chunks are divided among the workers.

The content of a chunk depends on the set and on the limit alone, so a result that is computed chunk by chunk is the
same on any number of workers. Shapes: N samples of a split, B of a chunk, C H W image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebmscale.data.manifest import Manifest
from ebmscale.data.reader import ShardReader
from ebmscale.data.split import Selection, key_hash
from ebmscale.errors import DataError
from ebmscale.storage import Storage

CHUNK_SAMPLES = 500


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


def select_all(manifest: Manifest) -> Selection:
    """Every sample of a set, of all its parts.

    Raises:
        DataError: there is none.
    """
    shards = [index for index, shard in enumerate(manifest.shards) for _ in shard.keys]
    samples = [sample for shard in manifest.shards for sample in range(shard.num_samples)]
    labels = [label for shard in manifest.shards for label in shard.labels]
    keys = [key for shard in manifest.shards for key in shard.keys]
    if not keys:
        raise DataError(f"{manifest.name} is empty; give a set that has samples.")
    return Selection(np.array(shards), np.array(samples), np.array(labels), keys)


def take(selection: Selection, limit: int | None, without_label: int | None = None) -> Selection:
    """At most `limit` samples of a selection, in the manifest's order, without those of one label.

    The samples whose keys hash lowest are taken, as they represent the whole.
    """
    kept = np.arange(len(selection)) if without_label is None else np.flatnonzero(selection.labels != without_label)
    if limit is not None and limit < len(kept):
        hashes = [key_hash(selection.keys[sample]) for sample in kept.tolist()]
        kept = np.sort(kept[np.argsort(hashes, kind="stable")[:limit]])
    keys = [selection.keys[sample] for sample in kept.tolist()]
    return Selection(selection.shards[kept], selection.samples[kept], selection.labels[kept], keys)


def iter_chunks(
    storage: Storage,
    manifest: Manifest,
    selection: Selection,
    rank: int = 0,
    size: int = 1,
    chunk_samples: int = CHUNK_SAMPLES,
) -> Iterator[Chunk]:
    """The chunks `rank, rank + size, ...` of a selection, in the manifest's order, one in memory at a time.

    Raises:
        DataError: a shard is missing, or a sample is damaged.
    """
    reader = ShardReader(storage, manifest)
    for index in range(rank, -(-len(selection) // chunk_samples), size):
        part = slice(index * chunk_samples, (index + 1) * chunk_samples)
        images, sound = reader.read(selection.shards[part], selection.samples[part])
        if not sound.all():
            raise DataError(
                f"Shard {storage.url_of(manifest.shards[selection.shards[part][~sound][0]].file)} has damaged samples; "
                f"check the set with `ebmscale inspect {storage.url}` and pack it again."
            )
        labels = torch.from_numpy(selection.labels[part])
        yield Chunk(index, torch.from_numpy(images), labels, selection.keys[part])
