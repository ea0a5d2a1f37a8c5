import itertools
import threading

import numpy as np
import pytest
import torch

from ebmscale.data import reader
from ebmscale.data import stream as stream_module
from ebmscale.data.choose import select_all
from ebmscale.data.pack import pack
from ebmscale.errors import ConfigError, DataError
from ebmscale.storage import Storage
from tests.data.indexed import indexed
from tests.data.streams import image_stream

NUM = 50  # samples of the set, all of them in train


@pytest.fixture
def manifest(make_source, storage):
    return pack(make_source(num_train=NUM), storage, shard_samples=20)


@pytest.fixture
def open_stream(storage, manifest):
    """A function that opens a stream of the set; all are closed at the end."""
    opened = []

    def open_one(**changes):
        settings = {"split": "train", "batch_size": 12, "seed": 3, "num_streams": 8, "window": 4}
        opened.append(image_stream(storage, manifest, **settings | {"validation_fraction": 0} | changes))
        return opened[-1]

    yield open_one
    for stream in opened:
        stream.close()


def take(stream, num_batches):
    return list(itertools.islice(stream, num_batches))


def keys_by_number(batches):
    """{i: key} of every sample in the batches."""
    return {
        batch.start + row: key for batch in batches for row, key in zip(batch.rows.tolist(), batch.keys, strict=True)
    }


def test_a_batch_holds_what_its_keys_say(make_source, open_stream):
    records = {record.key: record for record in make_source(num_train=NUM).records()}
    for number, batch in enumerate(take(open_stream(), 40)):
        assert (batch.start, batch.end) == (12 * number, 12 * number + 12)
        assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        assert batch.rows.tolist() == list(range(12))
        assert batch.streams.tolist() == [(batch.start + row) % 8 for row in range(12)]
        for image, label, key in zip(batch.images.numpy(), batch.labels.tolist(), batch.keys, strict=True):
            np.testing.assert_array_equal(image, records[key].image)
            assert label == records[key].label


def test_each_epoch_serves_each_sample_once_in_another_order(open_stream):
    served = keys_by_number(take(open_stream(), 13))
    epochs = [[served[i] for i in range(epoch * NUM, (epoch + 1) * NUM)] for epoch in range(3)]
    assert {len(set(epoch)) for epoch in epochs} == {NUM}
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_ranks_together_read_the_batches_of_one(open_stream, size):
    alone = take(open_stream(), 10)
    ranks = [take(open_stream(rank=rank, size=size), 10) for rank in range(size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        rows = torch.cat([part.rows for part in parts])
        assert torch.equal(rows.sort().values, whole.rows)
        assert torch.equal(torch.cat([part.images for part in parts])[rows.argsort()], whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts])[rows.argsort()], whole.labels)


def test_the_order_does_not_depend_on_the_batch_size(open_stream):
    served = [keys_by_number(take(open_stream(batch_size=size), 120 // size)) for size in (1, 12, 120)]
    assert served[0] == served[1] == served[2]


@pytest.mark.parametrize("start", [0, 1, 12, 49, 50, 51, 77, 100, 101])
def test_resuming_anywhere_gives_the_same_tail(open_stream, start):
    whole = keys_by_number(take(open_stream(), 15))
    for rank in range(3):
        tail = keys_by_number(take(open_stream(start=start, rank=rank, size=3), 6))
        assert tail
        assert tail == {i: whole[i] for i in tail}


def test_three_legs_with_other_numbers_of_ranks_see_each_sample_once(open_stream):
    legs = [(0, 1), (24, 4), (48, 2)]
    served = {}
    for start, size in legs:
        for rank in range(size):
            served |= keys_by_number(take(open_stream(start=start, rank=rank, size=size), 2))
    assert served == keys_by_number(take(open_stream(), 6))


def test_iterating_again_goes_on(open_stream):
    stream = open_stream()
    parts = take(stream, 2) + take(stream, 3)
    assert stream.position == 60
    assert keys_by_number(parts) == keys_by_number(take(open_stream(), 5))


def test_large_shards_are_read_in_few_ranges(open_stream, monkeypatch):
    expected = keys_by_number(take(open_stream(window=50), 5))
    monkeypatch.setattr(reader, "WHOLE_BYTES", 0)
    calls = []
    read_ranges = Storage.read_ranges
    monkeypatch.setattr(Storage, "read_ranges", lambda self, asked: calls.extend(asked) or read_ranges(self, asked))
    monkeypatch.setattr(stream_module, "BATCHES_AHEAD", 1)
    assert keys_by_number(take(open_stream(window=50, batch_size=12, num_streams=1), 4))
    assert 3 <= len(calls) <= 6  # three shards an epoch, and at most one epoch ahead
    assert keys_by_number(take(open_stream(window=50), 5)) == expected


def test_whole_shards_kept_are_bounded(storage, manifest, monkeypatch):
    monkeypatch.setattr(reader, "KEPT_BYTES", max(shard.num_bytes for shard in manifest.shards))
    shard_reader = reader.ShardReader(storage, manifest)
    for _ in range(2):
        images, sound = shard_reader.read(select_all(manifest).find(np.array([41, 5, 23, 2])))
        assert sound.all()
        assert len(shard_reader._kept) == 1
    assert images.any(axis=(1, 2, 3)).all()


def test_the_image_of_a_damaged_sample_is_zeros(storage, manifest, flip_byte):
    flip_byte(storage, manifest.shards[1], 4)
    shard_reader = reader.ShardReader(storage, manifest)
    images, _ = shard_reader.read(select_all(manifest).find(np.arange(NUM)))
    images[:] = 7
    place = images.ctypes.data
    del images
    images, sound = shard_reader.read(select_all(manifest).find(np.arange(NUM)))
    assert images.ctypes.data == place  # the memory of images that are gone
    assert np.flatnonzero(~sound).tolist() == [24]
    assert not images[24].any()


def test_a_damaged_sample_is_left_out_and_counted_once(storage, manifest, open_stream, flip_byte):
    expected = keys_by_number(take(open_stream(), 13))
    flip_byte(storage, manifest.shards[1], 4)
    bad = indexed(manifest)[1].keys[4]
    stream = open_stream(max_damaged=1)
    assert keys_by_number(take(stream, 13)) == {i: key for i, key in expected.items() if key != bad}
    assert stream.damaged == {"toy-train-000001.tar": 1}


@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
def test_a_truncated_shard_loses_its_tail_only(storage, manifest, open_stream, monkeypatch, whole_bytes):
    monkeypatch.setattr(reader, "WHOLE_BYTES", whole_bytes)
    shard = indexed(manifest)[0]
    storage.publish(shard.file, storage.read_bytes(shard.file)[: shard.index.offsets[15] + 3])
    stream = open_stream()
    served = set(keys_by_number(take(stream, 13)).values())
    assert {key for shard in indexed(manifest) for key in shard.keys} - served == set(shard.keys[15:])
    assert stream.damaged == {shard.file: 5}


def test_too_much_damage_ends_the_run_with_the_shards_name(storage, manifest, open_stream, flip_byte):
    for sample in range(3):
        flip_byte(storage, manifest.shards[1], sample)
    stream = open_stream(max_damaged=2)
    with pytest.raises(
        DataError,
        match=r"3 damaged samples were left out, but at most 2 are allowed; most \(3\) lie in .*toy-train-000001\.tar",
    ):
        take(stream, 10)
    take(open_stream(max_damaged=3), 10)


def test_damage_counts_only_when_it_is_consumed(storage, manifest, open_stream, flip_byte):
    """Reading ahead must not end a run earlier on a machine that reads further ahead."""
    last = keys_by_number(take(open_stream(), 4))[47]  # of the first epoch, in the fourth batch
    [(shard, sample)] = [(s, s.keys.index(last)) for s in indexed(manifest) if last in s.keys]
    flip_byte(storage, shard, sample)
    stream = open_stream(max_damaged=0)
    assert len(take(stream, 3)) == 3
    assert stream.damaged == {}
    with pytest.raises(DataError):
        take(stream, 1)


def test_a_shard_that_vanishes_reaches_the_consumer(storage, manifest, open_stream):
    storage.delete(manifest.shards[2].file)
    with pytest.raises(DataError, match=r"toy-train-000002\.tar is missing"):
        take(open_stream(), 10)


def test_closing_ends_the_thread(open_stream):
    before = threading.active_count()
    stream = open_stream()
    batches = iter(stream)
    next(batches)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
    assert list(batches) == []


def test_streams_are_limited_to_what_can_be(open_stream):
    with pytest.raises(ConfigError, match="at most as many workers as streams"):
        open_stream(rank=0, size=9)
    with pytest.raises(ConfigError, match="at least 1"):
        open_stream(window=0)


def test_a_set_smaller_than_the_batch_and_the_streams(make_source, tmp_path):
    storage = Storage.at(tmp_path / "tiny")
    manifest = pack(make_source(num_train=3), storage)
    settings = {"split": "train", "batch_size": 20, "seed": 0, "num_streams": 7, "window": 2, "validation_fraction": 0}
    stream = image_stream(storage, manifest, **settings)
    served = keys_by_number(take(stream, 3))
    stream.close()
    assert all(len({served[i] for i in range(first, first + 3)}) == 3 for first in range(0, 60, 3))
