"""The samples of q that a stage learns from: points, or Gaussian posteriors that are drawn from anew at every use.

Shapes: N samples or posteriors, B rows, Z coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ebmscale.density.moves import Noise


class Target(Protocol):
    """Samples of q. What they are may change between calls, as where a generator is training.

    Attributes:
        repeats: how often `every` draws from each data point, one round after the other.
    """

    @property
    def repeats(self) -> int: ...  # noqa: D102

    def draw(self, noise: Noise) -> Tensor:
        """One sample a row of the noise, (B, Z); a row's sample depends on that row's noise alone."""
        ...

    def every(self, generator: torch.Generator) -> Tensor:
        """All samples once, or several draws of every posterior: (M, Z)."""
        ...


@dataclass(frozen=True)
class Samples:
    """Points of q themselves.

    Attributes:
        rows: (N, Z).
    """

    rows: Tensor
    repeats: int = 1

    def draw(self, noise: Noise) -> Tensor:
        """See `Target.draw`."""
        return self.rows[_places(noise.uniform(), len(self.rows))]

    def every(self, generator: torch.Generator) -> Tensor:
        """See `Target.every`."""
        return self.rows


@dataclass(frozen=True)
class Posteriors:
    """Gaussian posteriors with diagonal covariances, one a data point.

    Attributes:
        mean: (N, Z).
        std: (N, Z).
        repeats: see `Target`.
    """

    mean: Tensor
    std: Tensor
    repeats: int = 4

    def draw(self, noise: Noise) -> Tensor:
        """See `Target.draw`; a new draw at every use, so that no latent is seen twice."""
        places = _places(noise.uniform(), len(self.mean))
        return self.mean[places] + self.std[places] * noise.normal(self.mean.shape[1])

    def every(self, generator: torch.Generator) -> Tensor:
        """See `Target.every`; (repeats * N, Z)."""
        noise = torch.randn(self.repeats, *self.mean.shape, generator=generator)
        return (self.mean + self.std * noise).flatten(0, 1)


@dataclass(frozen=True)
class Mapped:
    """A target seen in other coordinates.

    Attributes:
        target: in its own.
        coordinates: maps (M, Z) to (M, Z).
    """

    target: Target
    coordinates: Callable[[Tensor], Tensor]

    @property
    def repeats(self) -> int:
        """See `Target`."""
        return self.target.repeats

    def draw(self, noise: Noise) -> Tensor:
        """See `Target.draw`."""
        return self.coordinates(self.target.draw(noise))

    def every(self, generator: torch.Generator) -> Tensor:
        """See `Target.every`."""
        return self.coordinates(self.target.every(generator))


@dataclass(frozen=True)
class Parts:
    """Three sets of samples of q that share none.

    Attributes:
        train: what ratios are trained on.
        tune: chooses a stage's weights and its gain.
        judge: says how much a stage is worth.
    """

    train: Target
    tune: Target
    judge: Target

    def mapped(self, coordinates: Callable[[Tensor], Tensor]) -> "Parts":
        """The same in other coordinates."""
        return Parts(*(Mapped(part, coordinates) for part in (self.train, self.tune, self.judge)))


def _places(uniform: Tensor, num: int) -> Tensor:
    """For uniform draws (B,) in [0, 1) the places among `num`."""
    return (uniform.double() * num).long().clamp(max=num - 1)
