"""Noise for moves, from one generator."""

import torch
from torch import Tensor


class GeneratorNoise:
    """Draws for N rows from one generator, in a given precision."""

    def __init__(self, generator: torch.Generator, num_rows: int, dtype: torch.dtype = torch.float32):
        self._generator, self._num_rows, self._dtype = generator, num_rows, dtype

    def normal(self, *shape: int) -> Tensor:
        """See `Noise.normal`."""
        return torch.randn(self._num_rows, *shape, generator=self._generator, dtype=self._dtype)

    def uniform(self, *shape: int) -> Tensor:
        """See `Noise.uniform`."""
        return torch.rand(self._num_rows, *shape, generator=self._generator, dtype=self._dtype)
