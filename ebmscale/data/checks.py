"""Checks the files of a set against its manifest."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.shard import Shard
from ebmscale.errors import DataError
from ebmscale.storage import Storage
from ebmscale.stored import check_regular

CHECKED_AT_ONCE = 4  # shards
BLOCK_BYTES = 16 * 2**20  # of a shard that is checked, in memory at a time

Level = Literal["sha256", "size", "none"]


class ShardCheck(NamedTuple):
    """What a check of one shard found; `problem` is None if the shard is as the manifest says."""

    shard: str
    num_samples: int
    num_bytes: int
    problem: str | None


def inspect_shards(storage: Storage, manifest: Manifest, level: Level = "sha256") -> Iterator[ShardCheck]:
    """Check the file of every shard at an address, a few at once."""
    for shard, problem in zip(manifest.shards, _problems(storage, manifest.shards, level), strict=True):
        yield ShardCheck(shard.file, shard.num_samples, shard.num_bytes, problem)


def verify(
    storage: Storage, manifest: Manifest, level: Level, progress: Callable[[str], None] = lambda shard: None
) -> None:
    """Check the shards against the manifest.

    Args:
        storage: where the shards are.
        manifest: what they should be.
        level: "sha256" reads every byte, "size" asks for the files' sizes, "none" checks nothing.
        progress: called with the name of every shard that was checked; an exception of it ends the check.

    Raises:
        DataError: a shard is missing, has another size or other content; names the first such shard.
    """
    if level == "none":
        return
    for shard, problem in zip(manifest.shards, _problems(storage, manifest.shards, level), strict=True):
        if problem:
            raise DataError(
                f"Shard {storage.url_of(shard.file)} {problem}; copy it again from a sound copy, "
                f"or delete {storage.url_of(FILE)} and pack the set again."
            )
        progress(shard.file)


def _problems(storage: Storage, shards: list[Shard], level: Level) -> Iterator[str | None]:
    """What is wrong with each shard, in their order; a block of `CHECKED_AT_ONCE` is in memory."""
    with ThreadPoolExecutor(CHECKED_AT_ONCE, thread_name_prefix="verify") as pool:
        try:
            yield from pool.map(lambda shard: _problem(storage, shard, level), shards)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _problem(storage: Storage, shard: Shard, level: Level) -> str | None:
    if not storage.exists(shard.file):
        return "is missing"
    check_regular(storage, shard.file, DataError)
    num_bytes = storage.size(shard.file)
    if num_bytes != shard.num_bytes:
        return f"has {num_bytes} bytes where the manifest says {shard.num_bytes}"
    if shard.index_bytes and not storage.exists(shard.index_file):
        return f"has no index {shard.index_file}; write it with `ebmscale index {storage.url}`"
    if level == "sha256" and _digest(storage, shard) != shard.sha256:
        return "is damaged (its sha256 differs from the manifest's)"
    return None


def _digest(storage: Storage, shard: Shard) -> str:
    digest = hashlib.sha256()
    for start in range(0, shard.num_bytes, BLOCK_BYTES):
        digest.update(storage.read_range(shard.file, start, min(BLOCK_BYTES, shard.num_bytes - start)))
    return digest.hexdigest()
