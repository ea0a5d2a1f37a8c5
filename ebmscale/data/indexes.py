"""The indexes of a set's shards, each read when it is needed; a bounded number of bytes of them stays in memory."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

from ebmscale.data.shard import Shard
from ebmscale.data.shard_index import ShardIndex
from ebmscale.errors import DataError, StorageError
from ebmscale.storage import Range, Storage

KEPT_BYTES = 64 << 20  # of indexes, in memory; the least recently used goes first
FETCHED_TOGETHER = 32  # indexes that `each_index` reads at once
TOGETHER_BYTES = 32 << 20  # of index files that are asked for together


class RangeReader(Protocol):
    """A storage, or its cache on this machine."""

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range."""


class Indexes(Protocol):
    """The index of each shard, by the shard's number in the manifest."""

    def fetch(self, numbers: Sequence[int]) -> dict[int, ShardIndex]:
        """The indexes of several shards.

        Raises:
            DataError: an index file is missing, damaged, or does not fit its shard.
        """

    def through(self, reader: RangeReader | None) -> "Indexes":
        """The same indexes with a memory of their own, for another thread; `reader` reads the files, if it is given."""


class IndexesInMemory:
    """Indexes that are all in memory, as those of sets whose manifest has lists."""

    def __init__(self, indexes: Sequence[ShardIndex]):
        self._indexes = list(indexes)

    def fetch(self, numbers: Sequence[int]) -> dict[int, ShardIndex]:
        """See `Indexes`."""
        return {number: self._indexes[number] for number in numbers}

    def through(self, reader: RangeReader | None) -> "IndexesInMemory":
        """See `Indexes`."""
        return self


class IndexFiles:
    """Indexes in files beside the shards; use it from one thread.

    Args:
        storage: where the files are.
        shards: of the set.
        num_classes: of the set.
        payload_bytes: of every sample; None if they differ.
        reader: of the files; None: the storage.
    """

    def __init__(
        self,
        storage: Storage,
        shards: Sequence[Shard],
        num_classes: int,
        payload_bytes: int | None,
        reader: RangeReader | None = None,
    ):
        self._storage = storage
        self._shards = shards
        self._num_classes = num_classes
        self._payload_bytes = payload_bytes
        self._reader: RangeReader = storage if reader is None else reader
        self._kept: OrderedDict[int, ShardIndex] = OrderedDict()
        self._kept_bytes = 0

    def through(self, reader: RangeReader | None) -> "IndexFiles":
        """See `Indexes`."""
        return IndexFiles(self._storage, self._shards, self._num_classes, self._payload_bytes, reader)

    def fetch(self, numbers: Sequence[int]) -> dict[int, ShardIndex]:
        """See `Indexes`."""
        found = {number: self._kept[number] for number in numbers if number in self._kept}
        for number in found:
            self._kept.move_to_end(number)
        for group in self._groups([number for number in dict.fromkeys(numbers) if number not in found]):
            for number, index in zip(group, self._read([self._shards[number] for number in group]), strict=True):
                found[number] = self._kept[number] = index
                self._kept_bytes += index.num_bytes
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return found

    def _groups(self, numbers: list[int]) -> Iterator[list[int]]:
        group: list[int] = []
        num_bytes = 0
        for number in numbers:
            group.append(number)
            num_bytes += self._shards[number].index_bytes
            if num_bytes >= TOGETHER_BYTES:
                yield group
                group, num_bytes = [], 0
        if group:
            yield group

    def _read(self, shards: list[Shard]) -> list[ShardIndex]:
        try:
            answers = self._reader.read_ranges([Range(shard.index_file, 0, shard.index_bytes) for shard in shards])
        except StorageError:
            for shard in shards:
                if not self._storage.exists(shard.index_file):
                    raise self._error(shard, "is missing") from None
            raise
        return [self._parse(shard, data) for shard, data in zip(shards, answers, strict=True)]

    def _parse(self, shard: Shard, data: bytes) -> ShardIndex:
        try:
            return self._checked(shard, data)
        except ValueError as error:
            if self._reader is self._storage:
                raise self._error(shard, str(error)) from error
        try:  # a cache may hold an index file that was written anew since
            return self._checked(shard, self._storage.read_range(shard.index_file, 0, shard.index_bytes))
        except ValueError as error:
            raise self._error(shard, str(error)) from error

    def _checked(self, shard: Shard, data: bytes) -> ShardIndex:
        try:
            index, sha256 = ShardIndex.from_bytes(data)
        except ValueError as error:
            raise ValueError(f"is damaged ({error})") from error
        if sha256 != shard.sha256:
            raise ValueError("does not fit its shard, because it was made from another file")
        shard.check(index, self._num_classes, self._payload_bytes)
        return index

    def _error(self, shard: Shard, problem: str) -> DataError:
        return DataError(
            f"The index {self._storage.url_of(shard.index_file)} {problem}; "
            f"write it again with `ebmscale index {self._storage.url}`."
        )


def each_index(indexes: Indexes, numbers: Sequence[int]) -> Iterator[tuple[int, ShardIndex]]:
    """The indexes of many shards in this order; `FETCHED_TOGETHER` of them are read at once."""
    for first in range(0, len(numbers), FETCHED_TOGETHER):
        group = numbers[first : first + FETCHED_TOGETHER]
        fetched = indexes.fetch(group)
        for number in group:
            yield number, fetched[number]
