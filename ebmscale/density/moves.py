"""Moves that leave a density as it is: Langevin, MALA and Hamiltonian Monte Carlo, one transition for all three.

MALA is Hamiltonian Monte Carlo with a single leapfrog step, and unadjusted Langevin is MALA that accepts always. Noise
is handed in. Lengths are counted in `scale`, the spread of the particles in every coordinate, so that one step size
serves coordinates of different widths.

Shapes: N particles, Z latent.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ebmscale.density.langevin import ChainState, Target, start

ADAPTATION = 0.5
"""How far the logarithm of a step size goes for an acceptance that is off by one."""


class Noise(Protocol):
    """Where draws for a fixed number of rows N come from; `ebmscale.seeds.StreamNoise` is one."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (N, *shape)."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1) (N, *shape)."""
        ...


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


@dataclass(frozen=True)
class MoveSettings:
    """How particles are moved.

    Attributes:
        kind: "langevin" (unadjusted, so it leaves the density only nearly as it is), "mala" or "hmc".
        num_moves: transitions at every rung.
        step_size: at first, in units of the particles' spread; MALA and HMC adapt it to `acceptance`.
        num_leapfrog: of HMC.
        acceptance: the mean acceptance probability that the step size is adapted to; None takes 0.6 for MALA (its
            optimum in many dimensions is 0.57) and 0.8 for HMC.
    """

    kind: Literal["langevin", "mala", "hmc"] = "hmc"
    num_moves: int = 2
    step_size: float = 0.3
    num_leapfrog: int = 4
    acceptance: float | None = None

    @property
    def target_acceptance(self) -> float:
        """`acceptance`, or the usual one of the kind."""
        return self.acceptance if self.acceptance is not None else {"mala": 0.6}.get(self.kind, 0.8)


def move(
    state: ChainState,
    momentum: Tensor,
    uniform: Tensor,
    target: Target,
    step_size: Tensor,
    scale: Tensor,
    settings: MoveSettings,
) -> tuple[ChainState, Tensor]:
    """One transition of every particle, and its acceptance probability (N,).

    Args:
        state: where the particles are.
        momentum: (N, Z) standard normal.
        uniform: (N,) in [0, 1), for accept or reject.
        target: log density and score.
        step_size: (N,) in units of `scale`.
        scale: (N, Z) or (1, Z).
        settings: the kind and the number of leapfrog steps.
    """
    length = step_size[:, None].to(state.z.dtype) * scale
    moved, velocity = state, momentum
    for _ in range(settings.num_leapfrog if settings.kind == "hmc" else 1):
        velocity = velocity + 0.5 * length * moved.score
        moved = start(target, moved.z + length * velocity)
        velocity = velocity + 0.5 * length * moved.score
    if settings.kind == "langevin":
        return moved, torch.ones_like(uniform)
    gain = (moved.log_density - state.log_density) - 0.5 * (velocity.square() - momentum.square()).sum(dim=1)
    probability = gain.double().exp().clamp(max=1).nan_to_num(0.0)
    return chosen(uniform < probability, moved, state), probability


def jittered(step_size: Tensor, uniform: Tensor, settings: MoveSettings) -> Tensor:
    """HMC's step sizes (N,), each made smaller by up to a half as `uniform` (N,) says; those of other kinds.

    Where all trajectories last half a period of some direction they end at its mirror image, and an even function, such
    as the log density of a Gaussian, does not change however long they are followed.
    """
    return step_size * (0.5 + 0.5 * uniform) if settings.kind == "hmc" else step_size


def chosen(first: Tensor, one: ChainState, other: ChainState) -> ChainState:
    """Particle by particle, the state `one` where `first` (N,) says so, and else the `other`."""
    column = first[:, None]
    return ChainState(
        torch.where(column, one.z, other.z),
        torch.where(first, one.log_density, other.log_density),
        torch.where(column, one.score, other.score),
    )


def adapted(step_size: Tensor, acceptance: Tensor, settings: MoveSettings) -> Tensor:
    """The step sizes after moves with those mean acceptance probabilities, both of one shape; Langevin's stay."""
    if settings.kind == "langevin":
        return step_size
    return step_size * torch.exp(ADAPTATION * (acceptance - settings.target_acceptance))
