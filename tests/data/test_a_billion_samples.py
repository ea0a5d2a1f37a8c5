"""1,024 ranks over a billion samples in 10^5 shards, by a storage that makes up what is read of it and counts."""

import itertools
import random
from contextlib import closing

import numpy as np
import pytest

from ebmscale.data.assign import locate, segment
from ebmscale.storage import Storage
from tests.data.made_up_set import MadeUpFiles, make_up, number_of
from tests.data.streams import image_stream

NUM_SHARDS, PER_SHARD = 100_000, 10_000
NUM = NUM_SHARDS * PER_SHARD
RANKS, WINDOW, BATCH = 1024, 512, 4096


@pytest.fixture(scope="module")
def manifest():
    return make_up(NUM_SHARDS, PER_SHARD)


def open_stream(manifest, rank, start, **changes):
    settings = {"batch_size": BATCH, "seed": 7, "num_streams": 2 * RANKS, "window": WINDOW, "validation_fraction": 0}
    return image_stream(
        Storage.at("madeup://set"),
        manifest,
        split="train",
        rank=rank,
        start=start,
        **settings | {"size": RANKS} | changes,
    )


def shards_of_places(order, epoch, first, length):
    """The shards on which some places of an epoch's sequence lie."""
    sequence = order._sequence(epoch)
    begin, end = np.searchsorted(sequence.ends, [first, first + length - 1], "right")
    last_samples = sequence.ends[begin : end + 1] - 1 + sequence.shifts[begin : end + 1]
    return set((last_samples // PER_SHARD).tolist())


def test_each_rank_reads_its_windows_and_nothing_else(manifest):
    chance = random.Random(0)
    seen = {}
    for _ in range(6):
        rank, start = chance.randrange(RANKS), chance.randrange(3 * NUM // BATCH) * BATCH
        stream = open_stream(manifest, rank, start)
        MadeUpFiles.calls.clear()
        batch = next(stream._read_groups(start))[0].batch
        assert batch.rows.tolist() == [row for row in range(BATCH) if (start + row) % (2 * RANKS) % RANKS == rank]
        touched = {number_of(name) for name in MadeUpFiles.calls}
        allowed = set()
        for row in batch.rows.tolist():
            epoch, of_stream, offset = locate(start + row, NUM, 2 * RANKS)
            whole = segment(epoch, of_stream, NUM, 2 * RANKS)
            first = whole.start + offset // WINDOW * WINDOW
            length = min(WINDOW, whole.start + whole.length - first)
            allowed |= shards_of_places(stream._windows._order, epoch, first, length)
        assert touched == allowed
        for row, sample in zip(batch.rows.tolist(), batch.samples.tolist(), strict=True):
            assert seen.setdefault((start + row) // NUM, {}).setdefault(sample, start + row) == start + row


def test_the_windows_over_a_shard_serve_each_of_its_samples_once(manifest):
    order = open_stream(manifest, 0, 0)._windows._order
    for epoch, shard in ((0, 17), (5, 99_999)):
        sequence = order._sequence(epoch)
        [place] = np.flatnonzero(sequence.shifts + sequence.ends == (shard + 1) * PER_SHARD)
        first, end = int(sequence.ends[place]) - PER_SHARD, int(sequence.ends[place])
        served = []
        for stream in range(2 * RANKS):
            whole = segment(epoch, stream, NUM, 2 * RANKS)
            begin, stop = max(first, whole.start) - whole.start, min(end, whole.start + whole.length) - whole.start
            for index in range(begin // WINDOW, -(-stop // WINDOW)) if begin < stop else ():
                served += order.window(epoch, stream, index).tolist()
        of_shard = [sample for sample in served if sample // PER_SHARD == shard]
        assert sorted(of_shard) == list(range(shard * PER_SHARD, (shard + 1) * PER_SHARD))
        assert len(set(served)) == len(served)


def test_the_memory_of_windows_is_bounded(monkeypatch):
    """The order is the same if windows are read in pieces."""
    manifest = make_up(40, 200)
    settings = {"batch_size": 48, "num_streams": 16, "window": 100, "size": 1}

    def served():
        with closing(open_stream(manifest, 0, 96, **settings)) as stream:
            return [(batch.keys, batch.samples.tolist()) for batch in itertools.islice(stream, 60)]

    expected = served()
    for num_samples in (16, 16 * 7, 16 * 99):
        monkeypatch.setattr("ebmscale.data.windows.WINDOW_BYTES", num_samples * manifest.sample_bytes)
        assert served() == expected


def test_a_few_samples_of_a_small_shard_are_read_alone():
    """Windows of large images are read in pieces, each of which wants few samples of many shards."""
    manifest = make_up(60, 40, shape=(3, 128, 128))
    stream = open_stream(manifest, 0, 0, batch_size=8, num_streams=8, window=200, size=1)
    stream._windows._piece = 4
    next(stream._read_groups(0))
    assert MadeUpFiles.num_bytes < 8 * 4 * 3 * manifest.sample_bytes


def test_a_small_shard_of_which_much_is_wanted_is_read_once():
    manifest = make_up(10, 100)
    stream = open_stream(manifest, 0, 0, batch_size=8, num_streams=4, window=30, size=1)
    batches = itertools.chain.from_iterable(stream._read_groups(0))
    for _ in range(125):
        next(batches)
    assert sum(MadeUpFiles.calls[shard.file] for shard in manifest.shards) <= 12
