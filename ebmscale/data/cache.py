"""A local folder of bounded size that keeps what was read from a remote set of shards; processes may share it.

Shards and their indexes are kept in aligned blocks of `BLOCK_BYTES`, so every epoch needs the same blocks, in whatever
order. A block is one file, which holds the bytes and their crc32. Its name is made of the shard's sha256 and the
block's number, so a set that was packed again matches none of the old blocks. A block is renamed into place when it is
complete. A missing or damaged block is read from the storage. When the bound is reached, the least recently used blocks
are deleted.
"""

import fcntl
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ebmscale.data.manifest import Manifest
from ebmscale.errors import ConfigError, StorageError
from ebmscale.storage import Range, Storage

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
BLOCKS_TOGETHER = 64  # in memory at a time, besides the requested ranges
KEPT_SHARE = 0.9  # of the bound, that remains when blocks are deleted: searching the folder costs time
CRC_BYTES = 4
ENDING, TEMPORARY, TOTAL = ".block", ".tmp", "total"


class CacheBlock(NamedTuple):
    """One of the blocks into which a shard's file is cut."""

    file: str
    number: int


class CachedFile(NamedTuple):
    """A file that may be kept: its size, and what names its content."""

    num_bytes: int
    content: str


def _local(folder: str | os.PathLike[str]) -> Path:
    """The path of a local folder; ConfigError if the text is something else."""
    path = Storage.at(folder).local_path()
    if path is None:
        raise ConfigError(f"The cache {folder} is not on this machine; give a local folder.")
    return path


class RangeCache:
    """`read_ranges` of a storage that looks in a local folder first. It keeps no file open.

    Args:
        storage: where the shards are.
        manifest: what they hold.
        folder: where blocks are kept; made if missing. Several processes and several sets may share it.
        max_bytes: the largest size of all blocks together.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, storage: Storage, manifest: Manifest, folder: str | os.PathLike[str], max_bytes: int):
        self._storage = storage
        self._files = {shard.file: CachedFile(shard.num_bytes, shard.sha256) for shard in manifest.shards}
        for shard in manifest.shards:
            self._files[shard.index_file] = CachedFile(shard.index_bytes, f"index of {shard.sha256}")
        self._folder = _local(folder)
        self._max_bytes = max_bytes
        self._writes = True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The cache folder {folder} cannot be made ({error.strerror or error}); "
                "choose another data.cache, or null for none."
            ) from error

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """As `Storage.read_ranges`."""
        found: list[bytes] = []
        for group in self._groups(ranges):
            blocks = self._blocks([block for one in group for block in self._blocks_of(one)])
            found += [self._cut(one, blocks) for one in group]
        return found

    def forget(self, one: Range) -> None:
        """Delete the blocks of a range whose content turned out to be wrong, so that they are read again."""
        for block in self._blocks_of(one):
            with suppress(OSError):  # a folder that cannot be written
                self._path(block).unlink(missing_ok=True)

    def _groups(self, ranges: Sequence[Range]) -> Iterator[list[Range]]:
        """The ranges in groups that touch `BLOCKS_TOGETHER` blocks, or one range more."""
        group: list[Range] = []
        touched: set[CacheBlock] = set()
        for one in ranges:
            group.append(one)
            touched.update(self._blocks_of(one))
            if len(touched) >= BLOCKS_TOGETHER:
                yield group
                group, touched = [], set()
        if group:
            yield group

    def _blocks_of(self, one: Range) -> list[CacheBlock]:
        end = min(one.start + one.length, self._files[one.path].num_bytes)
        return [CacheBlock(one.path, number) for number in range(one.start // BLOCK_BYTES, -(-end // BLOCK_BYTES))]

    def _cut(self, one: Range, blocks: dict[CacheBlock, bytes]) -> bytes:
        """A range, cut out of its blocks; shorter if the shard ends before."""
        parts = []
        for block in self._blocks_of(one):
            first = block.number * BLOCK_BYTES
            inner = slice(max(0, one.start - first), one.start + one.length - first)
            parts.append(memoryview(blocks[block])[inner])
        return b"".join(parts)

    def _blocks(self, wanted: list[CacheBlock]) -> dict[CacheBlock, bytes]:
        """The content of each block; the missing ones are read together and kept."""
        kept = {block: self._load(block) for block in dict.fromkeys(wanted)}
        blocks = {block: data for block, data in kept.items() if data is not None}
        missing = [block for block, data in kept.items() if data is None]
        if missing:
            fresh = dict(zip(missing, self._storage.read_ranges([self._span(one) for one in missing]), strict=True))
            self._keep({block: data for block, data in fresh.items() if len(data) == self._span(block).length})
            blocks |= fresh
        return blocks

    def _span(self, block: CacheBlock) -> Range:
        start = block.number * BLOCK_BYTES
        return Range(block.file, start, min(BLOCK_BYTES, self._files[block.file].num_bytes - start))

    def _path(self, block: CacheBlock) -> Path:
        name = f"{self._files[block.file].content} {BLOCK_BYTES} {block.number}"
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}{ENDING}"

    def _load(self, block: CacheBlock) -> bytes | None:
        """A kept block, marked as just used; None if there is none. A damaged one is deleted."""
        path = self._path(block)
        try:
            content = path.read_bytes()
            data, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
            if len(data) == self._span(block).length and crc == _crc(data):
                os.utime(path)
                return data
            log.warning("dropping a damaged file of the cache, %s", path)
            path.unlink(missing_ok=True)
        except OSError:  # most often: it is not there, or another process removed it just now
            pass
        return None

    def _keep(self, blocks: dict[CacheBlock, bytes]) -> None:
        """Write as many blocks as the bound allows; if the folder cannot be written, the run continues without."""
        if not self._writes:
            return
        room = self._max_bytes // (BLOCK_BYTES + CRC_BYTES)
        chosen = list(blocks.items())[:room]
        try:
            with self._lock():
                self._make_room(sum(len(data) + CRC_BYTES for _, data in chosen))
                for block, data in chosen:
                    path = self._path(block)
                    temporary = path.with_suffix(TEMPORARY)
                    temporary.write_bytes(data + _crc(data))
                    temporary.replace(path)
        except OSError as error:
            self._writes = False
            log.warning(
                "the cache %s takes no more files (%s); reading continues without new ones", self._folder, error
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Only one process at a time writes or removes blocks; reading needs no lock."""
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, num_bytes: int) -> None:
        """Count the bytes that will be written; if they would exceed the bound, delete old blocks."""
        file = self._folder / TOTAL
        text = file.read_text() if file.exists() else ""
        total = int(text) if text.isdigit() else self._max_bytes
        if total + num_bytes > self._max_bytes:
            total = self._clean(num_bytes)
        file.write_text(str(total + num_bytes))  # before the blocks: a crash may leave it too large, never too small

    def _clean(self, num_bytes: int) -> int:
        """Delete what a crash left, and the oldest blocks if the bound requires it; returns the bytes that remain."""
        for left in self._folder.glob(f"*{TEMPORARY}"):
            left.unlink(missing_ok=True)
        found = []
        for path in self._folder.glob(f"*{ENDING}"):
            with suppress(FileNotFoundError):  # dropped just now as damaged
                found.append((path.stat(), path))
        total = sum(about.st_size for about, _ in found)
        if total + num_bytes <= self._max_bytes:
            return total
        for about, path in sorted(found, key=lambda one: one[0].st_mtime_ns):
            if total <= min(self._max_bytes * KEPT_SHARE, self._max_bytes - num_bytes):
                break
            path.unlink(missing_ok=True)
            total -= about.st_size
        return total


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(CRC_BYTES, "little")
