"""The local cache of a remote set: no second request, a bound that holds, several processes, damage."""

import contextlib
import itertools
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from ebmscale.data import cache as cache_module
from ebmscale.data.cache import CRC_BYTES, ENDING, RangeCache
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import StorageError
from ebmscale.storage import Range, Storage
from tests.data.streams import image_stream

NUM = 60
BLOCK = 1000
LARGE = 1 << 20
SETTINGS = {"split": "train", "batch_size": 12, "seed": 3, "num_streams": 6, "window": 4, "validation_fraction": 0}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(cache_module, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr("ebmscale.data.reader.WHOLE_BYTES", 0)
    monkeypatch.setattr("ebmscale.data.stream.BATCHES_AHEAD", 1)


@pytest.fixture
def remote(make_source, tmp_path):
    """A set that counts as remote, its manifest, and the ranges asked for so far."""
    storage = Storage.at(f"memory://{tmp_path.name}")
    yield storage, pack(make_source(num_train=NUM), storage, shard_samples=20)
    storage.delete("")


@pytest.fixture
def asked(monkeypatch):
    """Ranges that reached a storage."""
    ranges: list[Range] = []
    read = Storage.read_ranges

    def counted(self, wanted):
        ranges.extend(wanted)
        return read(self, wanted)

    monkeypatch.setattr(Storage, "read_ranges", counted)
    return ranges


def epochs(storage, manifest, cache, num=1, start=0):
    stream = image_stream(storage, manifest, cache=cache, start=start, **SETTINGS)
    try:
        return list(itertools.islice(stream, num * NUM // SETTINGS["batch_size"]))
    finally:
        stream.close()


def kept_bytes(folder):
    total = 0
    for file in folder.glob(f"*{ENDING}"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it just now
            total += file.stat().st_size
    return total


def test_later_epochs_ask_for_nothing_and_hold_the_same(remote, asked, tmp_path):
    storage, manifest = remote
    plain = epochs(storage, manifest, None, num=3)
    asked.clear()
    cache = RangeCache(storage, manifest, tmp_path / "cache", LARGE)
    cached = epochs(storage, manifest, cache)
    assert len(asked) == len(set(asked)) > 10
    del asked[:]
    cached += epochs(storage, manifest, RangeCache(storage, manifest, tmp_path / "cache", LARGE), num=2, start=NUM)
    assert asked == []
    assert [batch.keys for batch in cached] == [batch.keys for batch in plain]
    assert all(np.array_equal(a.images, b.images) for a, b in zip(cached, plain, strict=True))


def test_the_bound_holds_and_the_oldest_blocks_go(remote, asked, tmp_path):
    storage, manifest = remote
    shard, bound = manifest.shards[0].file, 5 * (BLOCK + CRC_BYTES)
    cache = RangeCache(storage, manifest, tmp_path / "cache", bound)
    for number in (0, 1, 2, 3, 4, 0, 5):  # 0 was used after 1
        cache.read_ranges([Range(shard, number * BLOCK, 10)])
        assert kept_bytes(tmp_path / "cache") <= bound
    del asked[:]
    cache.read_ranges([Range(shard, 0, 10), Range(shard, BLOCK, 10), Range(shard, 5 * BLOCK, 10)])
    assert [one.start for one in asked] == [BLOCK]
    epochs(storage, manifest, cache, num=2)
    assert 0 < kept_bytes(tmp_path / "cache") <= bound


def test_ranges_are_those_of_the_storage(remote, tmp_path):
    storage, manifest = remote
    shard = manifest.shards[0]
    spans = [(0, shard.num_bytes), (1, BLOCK), (BLOCK - 1, 2), (BLOCK, BLOCK), (shard.num_bytes - 3, 9), (5, 0)]
    ranges = [Range(shard.file, start, length) for start, length in spans]
    for bound in (LARGE, 1):  # the second keeps nothing
        cache = RangeCache(storage, manifest, tmp_path / f"cache{bound}", bound)
        for _ in range(2):
            assert cache.read_ranges(ranges) == storage.read_ranges(ranges)
    assert kept_bytes(tmp_path / "cache1") == 0


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:], lambda _: b""])
def test_a_damaged_block_is_dropped_and_read_again(remote, asked, tmp_path, caplog, spoil):
    storage, manifest = remote
    cache = RangeCache(storage, manifest, tmp_path / "cache", LARGE)
    clean = epochs(storage, manifest, cache)
    file = max((tmp_path / "cache").glob(f"*{ENDING}"))
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    del asked[:]
    with caplog.at_level(logging.WARNING):
        again = epochs(storage, manifest, cache)
    assert len(asked) == 1 == caplog.text.count("damaged file of the cache")
    assert file.read_bytes() == whole
    assert all(np.array_equal(a.images, b.images) for a, b in zip(again, clean, strict=True))


def test_damage_in_the_storage_does_not_stay_in_the_cache(remote, flip_byte, tmp_path):
    storage, manifest = remote
    shard, sound = manifest.shards[0], storage.read_bytes(manifest.shards[0].file)
    flip_byte(storage, shard, 3)
    cache = RangeCache(storage, manifest, tmp_path / "cache", LARGE)
    assert sum(len(batch.keys) for batch in epochs(storage, manifest, cache)) == NUM - 1
    storage.publish(shard.file, sound)
    assert sum(len(batch.keys) for batch in epochs(storage, manifest, cache)) == NUM


def test_a_folder_that_cannot_be_written_stops_nothing(remote, tmp_path, caplog):
    storage, manifest = remote
    cache = RangeCache(storage, manifest, tmp_path / "cache", LARGE)
    (tmp_path / "cache").rmdir()
    assert sum(len(batch.keys) for batch in epochs(storage, manifest, cache)) == NUM
    assert caplog.text.count("takes no more files") == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be made .*data\.cache"):
        RangeCache(storage, manifest, tmp_path / "file", LARGE)


def read_through(url, folder, bound, seed):
    """In another process: random ranges through the cache, each compared with the file."""
    cache_module.BLOCK_BYTES = BLOCK
    storage = Storage.at(url)
    manifest = Manifest.load(storage)
    cache = RangeCache(storage, manifest, folder, bound)
    chance = np.random.default_rng(seed)
    for _ in range(150):
        shard = manifest.shards[chance.integers(len(manifest.shards))]
        start, length = chance.integers(shard.num_bytes), chance.integers(1, 4 * BLOCK)
        found = cache.read_ranges([Range(shard.file, int(start), int(length))])
        assert found == [storage.read_range(shard.file, int(start), int(length))]
    return cache._writes


@pytest.mark.parametrize("num_blocks", [8, 1000])
def test_processes_share_a_folder(make_source, tmp_path, num_blocks):
    storage = Storage.at(tmp_path / "shards")
    pack(make_source(num_train=NUM), storage, shard_samples=20)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "left.tmp").write_text("by a crash")
    bound = num_blocks * (BLOCK + CRC_BYTES)
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        legs = [pool.submit(read_through, storage.url, tmp_path / "cache", bound, seed) for seed in range(3)]
        assert all(leg.result() for leg in legs)
    assert 0 < kept_bytes(tmp_path / "cache") <= bound
    assert not list((tmp_path / "cache").glob("*.tmp"))
