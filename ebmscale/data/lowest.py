"""The samples of a part whose keys hash lowest: a fixed number of them, with all that is needed to read them.

The held-out images of a run are among them, so that a run begins without reading the index of every shard.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ebmscale.data.shard_index import ShardIndex, decoded

NUM_LOWEST = 4096  # of each part


class LowSample(NamedTuple):
    """A sample, as in its shard's index.

    Attributes:
        shard: its shard's number in the manifest.
        sample: its place in the shard.
        key: its key.
        hash: of the key, see `shard_index.key_hash`.
        label: index into the classes; -1 if none.
        offset: byte of the shard's file at which the payload begins.
        size: bytes of the payload.
        crc32: of the payload.
    """

    shard: int
    sample: int
    key: str
    hash: float
    label: int
    offset: int
    size: int
    crc32: int


def rank(sample: LowSample) -> tuple[float, int, int]:
    """What samples are sorted by; equal hashes stand in the order of the manifest."""
    return sample.hash, sample.shard, sample.sample


class LowestSamples:
    """Collects the lowest samples of each part, shard by shard."""

    def __init__(self) -> None:
        self._lowest: dict[str, list[LowSample]] = {}

    def add(self, part: str, shard: int, index: ShardIndex) -> None:
        """Take the samples of a shard into account."""
        lowest = self._lowest.setdefault(part, [])
        bound = lowest[-1].hash if len(lowest) == NUM_LOWEST else 1.0
        if fresh := list(_lowest(shard, index, bound)):
            lowest += fresh
            lowest.sort(key=rank)
            del lowest[NUM_LOWEST:]

    def found(self) -> dict[str, list[LowSample]]:
        """The lowest samples of each part, the lowest first."""
        return self._lowest


def _lowest(shard: int, index: ShardIndex, bound: float) -> Iterator[LowSample]:
    """The lowest samples of a shard whose hashes are below a bound."""
    below = np.flatnonzero(index.hashes < bound)
    chosen = below[np.argsort(index.hashes[below], kind="stable")[:NUM_LOWEST]]
    arrays = (index.hashes, index.labels, index.offsets, index.sizes, index.crc32)
    columns = [chosen.tolist(), decoded(index.keys[chosen]), *[array[chosen].tolist() for array in arrays]]
    for values in zip(*columns, strict=True):
        yield LowSample(shard, *values)
