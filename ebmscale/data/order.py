"""The shuffled order of a split: the permutations that go with the places of `assign`.

Each epoch permutes all shards, joins their samples into one sequence, and cuts it into the streams' segments. Each
window of a segment is permuted. Every permutation is a function of the seed and its place alone. The order is computed
from the number of samples of each shard, so its memory does not grow with the number of samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ebmscale.data.assign import segment, window_span
from ebmscale.seeds import permutation


class _Sequence(NamedTuple):
    """The shards in the order of an epoch (P shards).

    Attributes:
        ends: (P,) int64, where the samples of each shard end in the epoch's sequence.
        shifts: (P,) int64, what a place in a shard's part of the sequence needs to become the sample's number.
    """

    ends: np.ndarray
    shifts: np.ndarray


class SampleOrder:
    """The order in which a split's samples are served.

    Args:
        counts: (num_shards,) the number of samples of each shard that are in the split. The split's samples are
            numbered shard by shard.
        seed: the run's seed.
        num_streams: streams S.
        window: samples that are shuffled together.
    """

    def __init__(self, counts: np.ndarray | Sequence[int], *, seed: int, num_streams: int, window: int):
        counts = np.asarray(counts, np.int64)
        self.num_samples = int(counts.sum())
        self.seed = seed
        self.num_streams = num_streams
        self.window_size = window
        self._counts = counts[counts > 0]
        self._starts = np.cumsum(self._counts) - self._counts
        self._sequences: dict[int, _Sequence] = {}  # of the last two epochs: streams change epochs one after the other

    def window(self, epoch: int, stream: int, index: int) -> np.ndarray:
        """The samples of one window, in the order served: (M,) int64 numbers of samples in the split, M <= window."""
        whole = segment(epoch, stream, self.num_samples, self.num_streams)
        span = window_span(index, self.window_size, whole.length)
        first = whole.start + span.start
        shuffle = permutation(span.length, self.seed, "window", epoch, stream, index)
        places, sequence = first + shuffle, self._sequence(epoch)
        return places + sequence.shifts[np.searchsorted(sequence.ends, places, "right")]

    def _sequence(self, epoch: int) -> _Sequence:
        if epoch not in self._sequences:
            if len(self._sequences) == 2:
                del self._sequences[min(self._sequences)]
            shard_order = permutation(len(self._counts), self.seed, "shards", epoch)
            counts = self._counts[shard_order]
            ends = np.cumsum(counts)
            self._sequences[epoch] = _Sequence(ends, self._starts[shard_order] - (ends - counts))
        return self._sequences[epoch]
