"""The shuffled order of a split: the permutations that go with the places of `assign`.

Each epoch permutes all shards, joins their samples into one sequence, and cuts it into the streams' segments. Each
window of a segment is permuted. Every permutation is a function of the seed and its place alone.
"""

import numpy as np

from ebmscale.data.assign import segment, window_span
from ebmscale.seeds import permutation


class SampleOrder:
    """The order in which a split's samples are served.

    Args:
        shards: (N,) the shard of each sample, ascending.
        seed: the run's seed.
        num_streams: streams S.
        window: samples that are shuffled together.
    """

    def __init__(self, shards: np.ndarray, *, seed: int, num_streams: int, window: int):
        self.num_samples = len(shards)
        self.seed = seed
        self.num_streams = num_streams
        self.window_size = window
        self._by_shard = np.split(np.arange(len(shards)), np.flatnonzero(np.diff(shards)) + 1)
        self._sequences: dict[int, np.ndarray] = {}  # of the last two epochs: streams change epochs one after the other

    def window(self, epoch: int, stream: int, index: int) -> np.ndarray:
        """The samples of one window, in the order served: (M,) indices into the split, M <= window."""
        whole = segment(epoch, stream, self.num_samples, self.num_streams)
        span = window_span(index, self.window_size, whole.length)
        first = whole.start + span.start
        shuffle = permutation(span.length, self.seed, "window", epoch, stream, index)
        return self._sequence(epoch)[first : first + span.length][shuffle]

    def _sequence(self, epoch: int) -> np.ndarray:
        if epoch not in self._sequences:
            if len(self._sequences) == 2:
                del self._sequences[min(self._sequences)]
            shard_order = permutation(len(self._by_shard), self.seed, "shards", epoch)
            self._sequences[epoch] = np.concatenate([self._by_shard[shard] for shard in shard_order])
        return self._sequences[epoch]
