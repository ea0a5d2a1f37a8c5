"""Noise for rows that belong to streams, so that nothing drawn depends on how many workers share the rows.

Shapes: B rows of this worker.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.seeds import StreamNoise


@dataclass(frozen=True)
class Draws:
    """Where the noise of a fit comes from: a function of (seed, purpose, position, stream) alone.

    Attributes:
        seed: of the whole fit.
        num_streams: S; row i of any batch belongs to stream i mod S.
        rank: this worker, which owns streams rank, rank + size, ...
        size: number of workers.
    """

    seed: int
    num_streams: int = 1
    rank: int = 0
    size: int = 1

    def streams(self, num: int) -> Tensor:
        """The streams (B,) of this worker's rows among `num` rows of all workers."""
        streams = torch.arange(num) % self.num_streams
        return streams if self.size == 1 else streams[streams % self.size == self.rank]

    def noise(self, num: int, purpose: str, position: int) -> StreamNoise:
        """The noise of this worker's rows among `num`, for one purpose at one position."""
        return StreamNoise(self.seed, purpose, position, self.streams(num))
