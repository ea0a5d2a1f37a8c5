"""Checks whether the samples of a set can be read: each one is compared with its crc32 and decoded, as in training."""

import numpy as np

from ebmscale.data.found import Found
from ebmscale.data.manifest import Manifest
from ebmscale.data.reader import ShardReader
from ebmscale.data.shard import Shard
from ebmscale.errors import DataError
from ebmscale.storage import Storage

DECODED_BYTES = 64 * 2**20  # of samples in memory at a time
MOST_TOGETHER = 500  # samples


def damaged_samples(storage: Storage, manifest: Manifest, shard: int) -> str | None:
    """What is wrong with the index or the samples of a shard whose file is the manifest's; None if all are sound.

    Raises:
        DataError: this version has no decoder for the set.
    """
    row = manifest.shards[shard]
    try:
        index = manifest.index(shard)
    except DataError as error:
        return f"has no sound index ({str(error).partition('; ')[0]})"
    if Shard.of(row.file, row.part, row.num_bytes, row.sha256, index, row.index_bytes) != row:
        return "has an index that the counts of the manifest do not fit"
    reader = ShardReader(storage, manifest)
    together = min(max(DECODED_BYTES // manifest.sample_bytes, 1), MOST_TOGETHER)
    num_damaged = 0
    for first in range(0, len(index), together):
        samples = np.arange(first, min(first + together, len(index)))
        try:
            num_damaged += int((~reader.read(Found.of(shard, index, samples))[1]).sum())
        except DataError as error:
            return str(error)
    return f"has {num_damaged:,} samples that do not match the manifest, or cannot be decoded" if num_damaged else None
