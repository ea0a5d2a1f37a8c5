"""Going to a position costs neither time nor bytes in proportion to it; a filesystem that makes up its bytes counts."""

import time
import tracemalloc
import zlib

import fsspec
import numpy as np
import pytest

from ebmscale.data.manifest import Manifest
from ebmscale.data.shard import Shard
from ebmscale.data.shard_index import ShardIndex
from ebmscale.storage import Storage
from tests.conftest import PATIENCE_S
from tests.data.streams import image_stream

SHAPE = (3, 256, 256)
STRIDE = 512 + 3 * 256 * 256 + 1024  # header, payload, label's header and block
SHARD_BYTES = 64 << 20
NUM_SHARDS = 1000
PER_SHARD = SHARD_BYTES // STRIDE


class CountingFileSystem(fsspec.AbstractFileSystem):
    """Files of zeros of any size."""

    protocol = "counting"
    calls = 0
    num_bytes = 0

    def cat_file(self, path, start=None, end=None, **_):
        CountingFileSystem.calls += 1
        CountingFileSystem.num_bytes += end - start
        return bytes(end - start)


@pytest.fixture
def counting():
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    CountingFileSystem.calls = CountingFileSystem.num_bytes = 0
    return CountingFileSystem


def make_manifest(num_shards, per_shard, shape):
    size = int(np.prod(shape))
    stride = 512 + size + 1024
    crc = zlib.crc32(bytes(size))
    offsets = [512 + stride * sample for sample in range(per_shard)]
    shards = []
    for number in range(num_shards):
        keys = [f"{number:04d}-{sample:04d}" for sample in range(per_shard)]
        index = ShardIndex.of(keys, [0] * per_shard, offsets, [size] * per_shard, [crc] * per_shard)
        shards.append((Shard.of(f"big-train-{number:06d}.tar", "train", SHARD_BYTES, "", index, 0), index))
    about = {"name": "big", "format": "toy", "encoding": "raw", "image_shape": shape, "dtype": "uint8"}
    return Manifest.of(shards, classes=["0"], **about)


def open_stream(manifest, start, **changes):
    settings = {"batch_size": 64, "seed": 0, "num_streams": 64, "window": 512, "validation_fraction": 0} | changes
    return image_stream(Storage.at("counting://set"), manifest, split="train", start=start, **settings)


def test_the_end_of_an_epoch_over_a_thousand_shards_is_near(counting):
    """Processor time and bytes until the first batch is there, of a stream that was opened before."""
    manifest = make_manifest(NUM_SHARDS, PER_SHARD, SHAPE)
    stream = open_stream(manifest, start=NUM_SHARDS * PER_SHARD - 64)
    start = time.thread_time()
    first = next(stream._read_groups(stream.position))[0].batch
    seconds = time.thread_time() - start
    assert len(first.images) == 64
    assert seconds < 1
    assert counting.num_bytes < 2 * SHARD_BYTES
    assert counting.calls <= 64


@pytest.mark.usefixtures("counting")
def test_memory_is_flat_over_epochs():
    manifest = make_manifest(20, 100, (3, 16, 16))
    stream = open_stream(manifest, start=0, num_streams=16, window=64)
    held = []
    tracemalloc.start()
    try:
        for number, _ in enumerate(stream, 1):
            if number % 125 == 0:  # 4 epochs: everything is where it was
                held.append(memory_at_rest(stream))
            if number == 625:
                break
    finally:
        tracemalloc.stop()
        stream.close()
    assert max(held[1:]) < 1.05 * held[0]


def memory_at_rest(stream) -> int:
    """Bytes held once the thread that reads ahead has as much as it may, and waits."""
    ahead = stream._ahead
    with ahead._changed:
        ahead._changed.wait_for(lambda: ahead._ended or not ahead._may_continue(), timeout=PATIENCE_S)
    return tracemalloc.get_traced_memory()[0]
