"""Noise for rows that belong to streams, so that nothing drawn depends on how many workers share the rows.

Shapes: B rows of this worker.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebmscale.seeds import StreamNoise


class Halted(Exception):
    """A fit is to end now; the text says why."""


@dataclass(frozen=True)
class Draws:
    """Where the noise of a fit comes from: a function of (seed, purpose, position, stream) alone.

    Attributes:
        seed: of the whole fit.
        num_streams: S; row i of any batch belongs to stream i mod S.
        rank: this worker, which owns streams rank, rank + size, ...
        size: number of workers.
        device: where numbers are drawn.
        before_each: called before every draw, so at every update and every rung; where it raises `Halted`, the work
            ends.
    """

    seed: int
    num_streams: int = 1
    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"
    before_each: Callable[[], None] = lambda: None

    @property
    def whole(self) -> "Draws":
        """The same noise for all rows of all workers."""
        return replace(self, rank=0, size=1)

    def rows(self, num: int) -> Tensor:
        """This worker's rows (B,) among `num` rows of all workers."""
        rows = torch.arange(num)
        return rows if self.size == 1 else rows[rows % self.num_streams % self.size == self.rank]

    def noise(self, num: int, purpose: str, position: int) -> StreamNoise:
        """The noise of this worker's rows among `num`, for one purpose at one position."""
        self.before_each()
        return StreamNoise(self.seed, purpose, position, self.rows(num) % self.num_streams, self.device)
