"""Randomness as a function of (seed, purpose, stream, position): no global generator is ever used.

A run draws everything random (data order, initial weights, the noise of every chain) from generators made here.
Two numbers place a draw: the *stream* (a fixed number of them per run, shared out among the workers) and the
*position* (`samples_seen`). So neither the number of workers nor an interruption changes a single draw.

Shapes: B rows of a batch.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor


def derive(seed: int, purpose: str, *place: int) -> int:
    """A 63-bit seed for one purpose at one place; different arguments give independent seeds (BLAKE2b)."""
    text = ":".join([str(seed), purpose, *map(str, place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def torch_generator(seed: int, purpose: str, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A `torch.Generator` for one purpose at one place, e.g. `(seed, "posterior", stream, samples_seen)`."""
    return torch.Generator(device).manual_seed(derive(seed, purpose, *place))


def permutation(num: int, seed: int, purpose: str, *place: int) -> np.ndarray:
    """A seeded permutation of `range(num)` as int64 (num,)."""
    return np.random.default_rng(derive(seed, purpose, *place)).permutation(num)


class StreamNoise:
    """Random rows for a batch whose rows belong to streams; every row's draws come from its own stream.

    A batch that is spread over workers therefore receives the same numbers, row by row, as on one worker.
    Calls continue the streams' sequences, so the order of calls is part of what is drawn.

    Args:
        seed: the run's seed.
        purpose: a name that separates this use from others.
        position: `samples_seen` at the start of the batch.
        streams: (B,) the stream of every row; rows of one stream must stand in their global order.
        device: where numbers are drawn; CPUs draw the same ones, a GPU others.
    """

    def __init__(
        self,
        seed: int,
        purpose: str,
        position: int,
        streams: Tensor | Iterable[int],
        device: torch.device | str = "cpu",
    ):
        streams = torch.as_tensor(streams, dtype=torch.int64)
        self.device = torch.device(device)
        numbers, self._counts = (part.tolist() for part in streams.unique(return_counts=True))
        self.num_rows = len(streams)
        sorts = bool((streams.diff() < 0).any())
        self._places = streams.argsort(stable=True).argsort().to(self.device) if sorts else None  # among rows by stream
        self._generators = [torch_generator(seed, purpose, s, position, device=self.device) for s in numbers]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (B, *shape), float32."""
        return self._draw(shape, Tensor.normal_)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1) (B, *shape), float32."""
        return self._draw(shape, Tensor.uniform_)

    def _draw(self, shape: tuple[int, ...], fill: Callable[..., Tensor]) -> Tensor:
        by_stream = torch.empty(self.num_rows, *shape, device=self.device)
        for part, generator in zip(by_stream.split(self._counts), self._generators, strict=True):
            fill(part, generator=generator)
        return by_stream if self._places is None else by_stream.index_select(0, self._places)
