"""Which sample comes when, and who reads it: pure integers, no files, no tensors, no state.

Every sample that training sees has a global number i = 0, 1, 2, ... (`samples_seen` before it). With N samples in
the split and S streams, a fixed number:

    epoch  = i // N            every epoch serves each sample once
    stream = i % S             a rank of W owns the streams s with s % W == rank
    offset = (i % N) // S      how many samples the stream served in this epoch before

In an epoch the streams take turns; a stream's *turn* is the place (i % N) % S at which it first comes. The epoch's
sequence of N samples is cut into S contiguous segments, laid out by turn, whose lengths differ by one at most.
A segment is read in windows of `window` samples, each shuffled as a whole. Nothing here depends on the number of
ranks, on the batch size or on what was read before: the position is i, and any i can be resumed at once.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np

Number = TypeVar("Number", int, np.ndarray)


class Place(NamedTuple, Generic[Number]):
    """Where sample number i stands: `offset` counts within the stream's segment of the epoch."""

    epoch: Number
    stream: Number
    offset: Number


class Interval(NamedTuple):
    """A contiguous range: places `start` to `start + length - 1`."""

    start: int
    length: int


def locate(i: Number, num_samples: int, num_streams: int) -> Place[Number]:
    """The place of sample number `i`, or of each in an array of numbers."""
    within = i % num_samples
    return Place(i // num_samples, i % num_streams, within // num_streams)


def segment(epoch: int, stream: int, num_samples: int, num_streams: int) -> Interval:
    """The part of the epoch's sequence that a stream serves; empty if it has no turn (N < S)."""
    turn = (stream - epoch * num_samples) % num_streams
    short, num_longer = divmod(num_samples, num_streams)
    return Interval(turn * short + min(turn, num_longer), short + (turn < num_longer))


def window_span(index: int, window: int, length: int) -> Interval:
    """The part of a segment of `length` samples that its window number `index` covers; the last may be shorter."""
    start = index * window
    return Interval(start, min(window, length - start))


def owner(stream: Number, size: int) -> Number:
    """The rank that reads a stream, or each stream of an array."""
    return stream % size


def rows_of(start: int, batch_size: int, num_streams: int, rank: int, size: int) -> np.ndarray:
    """The rows of the global batch (samples `start` to `start + batch_size - 1`) that `rank` of `size` reads."""
    rows = np.arange(batch_size)
    return rows[owner((start + rows) % num_streams, size) == rank]
