"""What a manifest says of a set, collected shard by shard: the rows, the lowest samples, and whether keys are unique.

The memory grows with the number of shards and not with the number of samples, as long as the keys of different shards
lie in ranges that do not overlap. The keys of shards whose ranges overlap are compared one by one.
"""

from collections.abc import Iterator

import numpy as np

from ebmscale.data.indexes import IndexFiles, each_index
from ebmscale.data.lowest import LowestSamples
from ebmscale.data.manifest import Manifest, SetAbout
from ebmscale.data.shard import IndexedShard, Shard
from ebmscale.errors import DataError
from ebmscale.storage import Storage


class SetSummary:
    """The shards of a set that were written so far."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self._lowest = LowestSamples()
        self._ranges: list[tuple[bytes, bytes]] = []  # the least and the greatest key of each shard
        self._repeats = False  # whether a key is twice in one shard

    def add(self, shard: IndexedShard) -> None:
        """Take the next shard into account."""
        keys = np.sort(shard.index.keys)
        self._repeats |= bool((keys[1:] == keys[:-1]).any())
        self._ranges.append((keys[0], keys[-1]))
        self._lowest.add(shard.part, len(self.shards), shard.index)
        self.shards.append(shard.row)

    def manifest(self, storage: Storage, about: SetAbout) -> Manifest:
        """The manifest of the shards; their files and index files are in the storage.

        Raises:
            DataError: two samples share a key.
        """
        indexes = IndexFiles(storage, self.shards, len(about.classes), None)
        manifest = Manifest(**vars(about), shards=self.shards, lowest=self._lowest.found(), indexes=indexes)
        if self._repeats or any(self._share_a_key(manifest, group) for group in self._overlapping()):
            raise DataError(f"Records of {about.name} share a key; give every sample a key of its own.")
        return manifest

    def _overlapping(self) -> Iterator[list[int]]:
        """Groups of shards whose ranges of keys overlap."""
        group: list[int] = []
        end = b""
        for number in sorted(range(len(self._ranges)), key=lambda number: self._ranges[number]):
            low, high = self._ranges[number]
            if group and low > end:
                yield group
                group = []
            end = max(end, high) if group else high
            group.append(number)
        if group:
            yield group

    def _share_a_key(self, manifest: Manifest, group: list[int]) -> bool:
        if len(group) == 1:
            return False
        keys = np.concatenate([index.keys for _, index in each_index(manifest.indexes, group)])
        return len(np.unique(keys)) < len(keys)
