"""Laws of the assignment, over many topologies; no process and no file is involved."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.data.assign import locate, owner, rows_of, segment, window_span
from ebmscale.data.order import SampleOrder

samples = st.integers(1, 300)
streams = st.integers(1, 70)
epochs = st.integers(0, 6)
windows = st.integers(1, 40)


@given(samples, streams, epochs)
def test_segments_cut_the_epoch_without_gap_or_overlap(num_samples, num_streams, epoch):
    spans = [segment(epoch, stream, num_samples, num_streams) for stream in range(num_streams)]
    covered = sorted(place for span in spans for place in range(span.start, span.start + span.length))
    assert covered == list(range(num_samples))
    assert max(span.length for span in spans) - min(span.length for span in spans) <= 1


@given(samples, streams, epochs)
def test_numbers_of_an_epoch_fill_the_segments_one_by_one(num_samples, num_streams, epoch):
    served = [0] * num_streams
    for i in range(epoch * num_samples, (epoch + 1) * num_samples):
        place = locate(i, num_samples, num_streams)
        assert place == (epoch, i % num_streams, served[place.stream])
        served[place.stream] += 1
    assert served == [segment(epoch, stream, num_samples, num_streams).length for stream in range(num_streams)]


@given(windows, samples)
def test_windows_cut_a_segment(window, length):
    spans = [window_span(index, window, length) for index in range(-(-length // window))]
    assert [place for start, num in spans for place in range(start, start + num)] == list(range(length))


@given(st.integers(0, 1000), st.integers(1, 130), streams, st.integers(1, 64))
def test_ranks_share_out_a_batch_whatever_their_number(start, batch_size, num_streams, size):
    size = min(size, num_streams)
    parts = [rows_of(start, batch_size, num_streams, rank, size).tolist() for rank in range(size)]
    assert sorted(row for rows in parts for row in rows) == list(range(batch_size))
    for rank, rows in enumerate(parts):
        assert rows == sorted(rows)
        assert all(owner((start + row) % num_streams, size) == rank for row in rows)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 8), st.integers(1, 8))
def test_ranks_get_equally_many_rows_when_the_numbers_divide(start, batches, per_rank, size):
    num_streams = per_rank * size
    parts = [rows_of(start, batches * num_streams, num_streams, rank, size).tolist() for rank in range(size)]
    assert {len(rows) for rows in parts} == {batches * per_rank}


def make_order(shard_sizes, num_streams, window, seed=0):
    return SampleOrder(shard_sizes, seed=seed, num_streams=num_streams, window=window)


def sample_at(order, i):
    epoch, stream, offset = locate(i, order.num_samples, order.num_streams)
    index, place = divmod(offset, order.window_size)
    return int(order.window(epoch, stream, index)[place])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), streams, windows, st.integers(0, 3))
def test_each_sample_comes_once_an_epoch(shard_sizes, num_streams, window, epoch):
    order = make_order(shard_sizes, num_streams, window)
    num = order.num_samples
    served = [sample_at(order, i) for i in range(epoch * num, (epoch + 1) * num)]
    assert sorted(served) == list(range(num))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), streams, windows, st.integers(0, 300))
def test_the_order_can_be_entered_anywhere(shard_sizes, num_streams, window, start):
    """A fresh order, asked backwards, serves what one that was read from the beginning serves."""
    read_on = make_order(shard_sizes, num_streams, window)
    whole = [sample_at(read_on, i) for i in range(start + 30)]
    fresh = make_order(shard_sizes, num_streams, window)
    tail = [sample_at(fresh, i) for i in reversed(range(start, start + 30))]
    assert whole[start:] == tail[::-1]


def test_shards_stay_together_and_windows_stay_within_their_segment():
    order = make_order([10, 10, 10], num_streams=3, window=5)
    segments = [np.concatenate([order.window(0, stream, index) for index in range(2)]) for stream in range(3)]
    assert sorted(set(segment // 10) == {segment[0] // 10} for segment in segments) == [True] * 3


def test_seeds_and_epochs_differ():
    orders = [make_order([200], 4, 50, seed) for seed in (0, 1)]
    served = [[sample_at(order, i) for i in range(200)] for order in orders]
    served.append([sample_at(orders[0], i) for i in range(200, 400)])
    assert len({tuple(one) for one in served}) == 3


sizes = st.integers(1, 64)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=6), windows, st.integers(1, 90), st.lists(
        st.tuples(st.integers(0, 4), sizes), min_size=1, max_size=4
    )
)  # fmt: skip
def test_any_stop_and_any_new_number_of_ranks_leave_the_union_of_what_was_left(shard_sizes, window, batch_size, legs):
    """Legs of (batches, ranks): each goes on where the last stopped; ranks of a leg take equally many batches."""
    order = make_order(shard_sizes, 64, window)
    numbers, start = [], 0
    for num_batches, size in legs:
        for rank in range(size):
            for batch in range(num_batches):
                first = start + batch * batch_size
                numbers += [first + row for row in rows_of(first, batch_size, 64, rank, size).tolist()]
        start += num_batches * batch_size
    assert sorted(numbers) == list(range(start))
    served = [sample_at(order, i) for i in sorted(numbers)]
    for first in range(0, start, order.num_samples):
        epoch = served[first : first + order.num_samples]
        assert len(set(epoch)) == len(epoch)


def test_arrays_of_numbers_are_located_as_single_ones_are():
    numbers = np.arange(500)
    together = locate(numbers, 37, 8)
    assert [tuple(place) for place in np.stack(together).T.tolist()] == [locate(i, 37, 8) for i in range(500)]


billions = st.integers(1, 10**12)


@given(billions, st.integers(1, 100_000), st.integers(0, 10**6), st.data())
def test_the_laws_of_segments_hold_for_any_number_of_samples(num_samples, num_streams, epoch, data):
    """Segments of streams that follow each other by turn touch, and each has a share that differs by one at most."""
    turn = data.draw(st.integers(0, num_streams - 1))
    stream, following = ((epoch * num_samples + place) % num_streams for place in (turn, turn + 1))
    span = segment(epoch, stream, num_samples, num_streams)
    assert span.length in (num_samples // num_streams, -(-num_samples // num_streams))
    if turn == 0:
        assert span.start == 0
    if turn == num_streams - 1:
        assert span.start + span.length == num_samples
    else:
        assert segment(epoch, following, num_samples, num_streams).start == span.start + span.length


@given(billions, st.integers(1, 100_000), st.integers(0, 10**15))
def test_a_number_of_any_size_has_one_place(num_samples, num_streams, i):
    place = locate(i, num_samples, num_streams)
    in_array = locate(np.array([i]), num_samples, num_streams)
    assert tuple(int(part[0]) for part in in_array) == place
    assert 0 <= place.offset < segment(place.epoch, place.stream, num_samples, num_streams).length
    turn = (i % num_samples) % num_streams
    assert place.epoch * num_samples + place.offset * num_streams + turn == i


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=100).filter(any), st.integers(1, 10_000), st.data())
def test_the_order_of_any_number_of_samples_is_a_permutation(counts, num_streams, data):
    """Windows over a few neighbouring places of the epoch serve different samples, in shards that are neighbours there.

    The law for all windows of small sets is above; here the numbers are those of sets that no list could hold.
    """
    order = SampleOrder(counts, seed=1, num_streams=num_streams, window=100)
    starts = np.cumsum(counts) - counts
    i = data.draw(st.integers(0, 3 * order.num_samples))
    place = locate(i, order.num_samples, num_streams)
    index, within = divmod(place.offset, 100)
    window = order.window(place.epoch, place.stream, index)
    assert 0 <= within < len(window)
    assert len(set(window.tolist())) == len(window)
    shards = np.searchsorted(starts, window, "right") - 1
    assert (window >= 0).all()
    assert (window < order.num_samples).all()
    for shard in set(shards.tolist()):
        of_shard = np.sort(window[shards == shard])
        assert (np.diff(of_shard) == 1).all()  # a contiguous part of the shard
