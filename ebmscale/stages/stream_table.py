"""Latents kept by stream: the buffer of recent posterior samples and the pool of prior chains.

The run has S streams; a rank owns streams rank, rank + size, ... Everything here is stored and drawn stream by
stream, so the union over ranks does not depend on how many there are.

Shapes: S streams of the run, O streams owned by this rank, N slots of a stream, Z latent, B rows, R draws.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ebmscale.model.pieces import Piece, Span
from ebmscale.world import World


class StreamTable:
    """N slots of latents for every owned stream; writing goes round, the oldest is overwritten.

    Args:
        num_streams: S.
        num_slots: N, slots of a stream.
        dim: Z.
        world: which streams are owned.
    """

    def __init__(self, num_streams: int, num_slots: int, dim: int, world: World):
        self.num_streams = num_streams
        self.world = world
        num_owned = len(range(world.rank, num_streams, world.size))
        self.z = torch.zeros(num_owned, num_slots, dim, device=world.device)
        self.written = torch.zeros(num_owned, dtype=torch.int64)
        self._ready = False

    @property
    def row_streams(self) -> Tensor:
        """The stream of every row of `rows` (O * N,)."""
        return torch.arange(self.world.rank, self.num_streams, self.world.size).repeat_interleave(self.z.shape[1])

    @property
    def rows(self) -> Tensor:
        """All slots as rows (O * N, Z), stream by stream."""
        return self.z.flatten(0, 1)

    def fill(self, rows: Tensor) -> None:
        """Replaces all slots by rows (O * N, Z), in the order of `rows`."""
        self.z = rows.reshape(self.z.shape).to(self.z.device)
        self.written.fill_(self.z.shape[1])

    def add(self, z: Tensor, streams: Tensor) -> None:
        """Writes latents z (B, Z) of the given streams (B,), each into its stream's next slot."""
        own = streams // self.world.size
        counts = torch.bincount(own, minlength=len(self.written))
        order = own.argsort(stable=True)
        earlier = torch.empty_like(own)  # rows of the same stream before this one
        earlier[order] = torch.arange(len(own)) - (counts.cumsum(0) - counts)[own[order]]
        slot = (self.written[own] + earlier) % self.z.shape[1]
        kept = earlier >= counts[own] - self.z.shape[1]  # a slot is written once, by the last row that is due there
        self.z[own[kept], slot[kept]] = z.detach()[kept].to(self.z.dtype)
        self.written += counts

    def is_ready(self) -> bool:
        """Whether every stream on every rank holds a latent (collective until it is so)."""
        if not self._ready:
            self._ready = not self.world.any(bool((self.written == 0).any()))
        return self._ready

    def is_full(self) -> bool:
        """Whether every slot on every rank holds a latent (collective)."""
        return not self.world.any(bool((self.written < self.z.shape[1]).any()))

    def draw(self, uniform: Tensor, streams: Tensor) -> Tensor:
        """For every row a random slot of its stream: uniform draws (B, R) in [0, 1) give latents (B, R, Z)."""
        own = streams // self.world.size
        filled = self.written[own].clamp(max=self.z.shape[1])
        slot = (uniform.cpu() * filled[:, None]).long().clamp(max=self.z.shape[1] - 1)
        return self.z[own[:, None], slot]

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the whole run's table: z (S, N, Z) and written (S,)."""
        return {"z": torch.Size((self.num_streams, *self.z.shape[1:])), "written": torch.Size((self.num_streams,))}

    def share(self) -> list[Piece]:
        """This rank's streams, as views; the shares of all ranks tile the whole table."""
        return [
            Piece(span, own.reshape(-1)[first : first + span.length])
            for name, own in self._own().items()
            for span, first in self._spans(name, own)
        ]

    def wanted(self) -> list[Span]:
        """The spans that `restore` needs on this rank."""
        return [span for name, own in self._own().items() for span, _ in self._spans(name, own)]

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """Takes this rank's streams, whatever world saved them."""
        for name, own in self._own().items():
            parts = [values[span] for span, _ in self._spans(name, own)]
            setattr(self, name, torch.cat(parts).view(own.shape).to(own.device))
        self._ready = False

    def _own(self) -> dict[str, Tensor]:
        return {"z": self.z, "written": self.written}

    def _spans(self, name: str, own: Tensor) -> Iterator[tuple[Span, int]]:
        """Where this rank's elements lie in the whole table, and where in its own; one rank owns it all."""
        length = own[0].numel()
        if self.world.size == 1:
            yield Span(name, 0, own.numel()), 0
            return
        for index, stream in enumerate(range(self.world.rank, self.num_streams, self.world.size)):
            yield Span(name, stream * length, length), index * length
