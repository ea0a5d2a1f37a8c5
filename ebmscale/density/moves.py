"""Markov kernels that leave a density invariant: Langevin, MALA and Hamiltonian Monte Carlo, in one transition.

MALA is Hamiltonian Monte Carlo with one leapfrog step. Unadjusted Langevin is MALA that always accepts. Noise is an
argument. Lengths are in units of `scale`, the standard deviation of the particles in every coordinate. So one step size
fits coordinates of different widths.

Shapes: N particles, Z latent.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ebmscale.density.langevin import ChainState, Target, start

ADAPTATION = 0.5
"""Change of the logarithm of a step size for a difference of 1 between acceptance and target."""


class Noise(Protocol):
    """A source of random draws for a fixed number of rows N. `ebmscale.seeds.StreamNoise` is one."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (N, *shape)."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1) (N, *shape)."""
        ...


@dataclass(frozen=True)
class MoveSettings:
    """Settings of the kernel.

    Attributes:
        kind: "langevin" (unadjusted, so the density is invariant only approximately), "mala" or "hmc".
        num_moves: transitions at every rung.
        step_size: initial step size, in standard deviations of the particles. MALA and HMC adapt it to `acceptance`.
        num_leapfrog: leapfrog steps of HMC.
        acceptance: the mean acceptance probability that the step size is adapted to. None means 0.6 for MALA (the
            optimum in high dimensions is 0.57, Roberts & Rosenthal 1998) and 0.8 for HMC.
    """

    kind: Literal["langevin", "mala", "hmc"] = "hmc"
    num_moves: int = 2
    step_size: float = 0.3
    num_leapfrog: int = 4
    acceptance: float | None = None

    @property
    def target_acceptance(self) -> float:
        """`acceptance`, or the default of the kind."""
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
        state: positions of the particles, with the target there.
        momentum: (N, Z) standard normal.
        uniform: (N,) in [0, 1), for the accept-reject step.
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
    """The step sizes (N,) of HMC, each multiplied by (1 + `uniform`) / 2, with `uniform` (N,); other kinds keep theirs.

    Jitter prevents periodic trajectories (Neal 2011). A trajectory that lasts half a period of some
    direction ends at its mirror image there. An even function, such as the log density of a Gaussian, then never
    changes.
    """
    return step_size * (0.5 + 0.5 * uniform) if settings.kind == "hmc" else step_size


def chosen(first: Tensor, one: ChainState, other: ChainState) -> ChainState:
    """The state `one` of the particles for which `first` (N,) is true, and the state `other` of the rest."""
    column = first[:, None]
    return ChainState(
        torch.where(column, one.z, other.z),
        torch.where(first, one.log_density, other.log_density),
        torch.where(column, one.score, other.score),
    )


def adapted(step_size: Tensor, acceptance: Tensor, settings: MoveSettings) -> Tensor:
    """Step sizes adapted to mean acceptance probabilities of the same shape. Langevin keeps its step size."""
    if settings.kind == "langevin":
        return step_size
    return step_size * torch.exp(ADAPTATION * (acceptance - settings.target_acceptance))
