"""A set of any size whose files are made when they are read; the storage counts bytes and calls.

The shards are of raw uint8 images of zeros. Shards with equal contents share them, so that only what is read is made.
"""

import hashlib
import json
import math
import zlib
from collections import Counter
from typing import Any, ClassVar

import fsspec
import numpy as np

from ebmscale.data.indexes import IndexFiles
from ebmscale.data.lowest import LowestSamples
from ebmscale.data.manifest import Manifest
from ebmscale.data.shard import Shard
from ebmscale.data.shard_index import FRACTIONS, ShardIndex
from ebmscale.storage import Storage

SHAPE = (3, 32, 32)
NUM_KINDS = 64
AROUND = 512 + 1024  # bytes of a sample besides its payload: its header, and the label's header and block


class MadeUpFiles(fsspec.AbstractFileSystem):
    """The files of the set that was described last."""

    protocol = "madeup"
    per_shard = 0
    payload = 0
    num_bytes = 0
    calls: ClassVar[Counter[str]] = Counter()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Bytes of a shard or of an index."""
        name = path.rpartition("/")[2]
        MadeUpFiles.calls[name] += 1
        data = (
            index_bytes(number_of(name), self.per_shard, self.payload)[start:end]
            if name.endswith("npz")
            else bytes((end or 0) - (start or 0))
        )
        MadeUpFiles.num_bytes += len(data)
        return data


def number_of(name: str) -> int:
    return int(name.partition(".")[0].rpartition("-")[2])


def index_of(number: int, per_shard: int, payload: int) -> ShardIndex:
    """The index of a shard; the hashes are random numbers, the same in every 64th shard, and not those of the keys."""
    keys = np.array([b"%08d-%06d" % (number, sample) for sample in range(per_shard)], np.bytes_)
    return ShardIndex(
        keys,
        np.zeros(per_shard, np.int32),
        np.random.default_rng(number % NUM_KINDS).random(per_shard),
        512 + (payload + AROUND) * np.arange(per_shard, dtype=np.int64),
        np.full(per_shard, payload, np.int64),
        np.full(per_shard, zlib.crc32(bytes(payload)), np.uint32),
    )


def index_bytes(number: int, per_shard: int, payload: int) -> bytes:
    return index_of(number, per_shard, payload).to_bytes(sha256_of(number))


def sha256_of(number: int) -> str:
    return f"{number:064x}"


def register(per_shard: int, payload: int) -> None:
    """Describe the set that the storage makes up; its counts begin at nothing."""
    fsspec.register_implementation("madeup", MadeUpFiles, clobber=True)
    MadeUpFiles.per_shard, MadeUpFiles.payload = per_shard, payload
    MadeUpFiles.num_bytes, MadeUpFiles.calls = 0, Counter()


def make_up(num_shards: int, per_shard: int, counted: bool = False, shape: tuple[int, ...] = SHAPE) -> Manifest:
    """The manifest of a set of `num_shards` shards, which the storage makes up from now on.

    Args:
        num_shards: shards, all of part train.
        per_shard: samples of each.
        counted: whether validation samples are counted, and the lowest ones known.
        shape: of an image.
    """
    payload = math.prod(shape)
    register(per_shard, payload)
    labels = hashlib.sha256(json.dumps([0] * per_shard).encode()).hexdigest()
    size, lowest, shards = len(index_bytes(0, per_shard, payload)), LowestSamples(), []
    kinds = [index_of(kind, per_shard, payload) for kind in range(NUM_KINDS)] if counted else []
    counts = [index.below(FRACTIONS) for index in kinds] or [(0,) * len(FRACTIONS)] * NUM_KINDS
    for number in range(num_shards):
        below = counts[number % NUM_KINDS]
        if counted:
            lowest.add("train", number, kinds[number % NUM_KINDS])
        file, num_bytes = f"big-train-{number:08d}.tar", (payload + AROUND) * per_shard
        shards.append(Shard(file, "train", per_shard, num_bytes, sha256_of(number), 0, labels, size, below))
    indexes = IndexFiles(Storage.at("madeup://set"), shards, 1, payload)
    return Manifest("big", "toy", "raw", shape, "uint8", ["0"], shards, lowest.found(), indexes)
