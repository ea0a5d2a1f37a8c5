"""Checks whether the samples of a set can be read: each one is compared with its crc32 and decoded, as in training."""

import numpy as np

from ebmscale.data.manifest import Manifest
from ebmscale.data.reader import ShardReader
from ebmscale.storage import Storage

DECODED_BYTES = 64 * 2**20  # of samples in memory at a time
MOST_TOGETHER = 500  # samples


def damaged_samples(storage: Storage, manifest: Manifest, shard: int) -> str | None:
    """What is wrong with the samples of a shard (an index) whose file is the manifest's; None if all are sound.

    Raises:
        DataError: the shard is missing, or this version has no decoder for the set.
    """
    reader, total = ShardReader(storage, manifest), manifest.shards[shard].num_samples
    together = min(max(DECODED_BYTES // manifest.sample_bytes, 1), MOST_TOGETHER)
    num_damaged = 0
    for first in range(0, total, together):
        samples = np.arange(first, min(first + together, total))
        num_damaged += int((~reader.read(np.full(len(samples), shard), samples)[1]).sum())
    return f"has {num_damaged:,} samples that do not match the manifest, or cannot be decoded" if num_damaged else None
