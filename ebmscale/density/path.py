"""Paths from one density to another, how they are walked, and what a walk ends with; `smc.anneal` walks them.

Shapes: M points, G groups, N particles of a group, Z latent, K legs, R rungs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from ebmscale.density.moves import MoveSettings
from ebmscale.density.prior import RatioSequence

LogDensity = Callable[[Tensor], Tensor]


class Normaliser(NamedTuple):
    """log Z_K of a sequence, its standard error, and a cross-check by stepping stones (see `Annealed.log_z_bridge`)."""

    log_z: float
    error: float
    bridge: float


class Leg(NamedTuple):
    """A piece of a path; both functions map z (M, Z) to (M,), each entry depending on its own row.

    Attributes:
        log_density: of the leg's start, up to a constant.
        increment: what is added to it by the leg's end.
    """

    log_density: LogDensity
    increment: LogDensity

    def reversed(self) -> "Leg":
        """The leg walked the other way."""
        return Leg(lambda z: self.log_density(z) + self.increment(z), lambda z: -self.increment(z))


class Plan(NamedTuple):
    """How a leg is walked, fixed beforehand: what a walk of other particles found.

    Attributes:
        rungs: (G, R) where to stop, in ascending order; the last is the leg's end.
        step_size: (G, R) of the kernel at each rung.
        scale: (G, R, Z) the spread in which the kernel counts.
    """

    rungs: Tensor
    step_size: Tensor
    scale: Tensor

    def reversed(self) -> "Plan":
        """The same rungs and kernels for the leg walked the other way."""
        below = torch.cat([torch.zeros_like(self.rungs[:, :1]), self.rungs[:, :-1]], dim=1)
        order = torch.arange(self.rungs.shape[1] - 1, -1, -1)
        kernels = (order - 1).clamp(min=0)  # of the rung that a step comes to; at the start no kernel matters
        return Plan(1 - below[:, order], self.step_size[:, kernels], self.scale[:, kernels])


@dataclass(frozen=True)
class Annealing:
    """How a path is walked.

    Attributes:
        ess: the conditional effective sample size, as a fraction, that a step to the next rung keeps.
        resample_below: groups whose effective sample size, as a fraction, is below are resampled; 0 is annealed
            importance sampling, 1 resamples at every rung.
        moves: the kernel.
    """

    ess: float = 0.7
    resample_below: float = 0.5
    moves: MoveSettings = field(default_factory=MoveSettings)


@dataclass
class Annealed:
    """What a walk ended with.

    Attributes:
        z: (G, N, Z) particles.
        log_weights: (G, N), normalised in every group.
        log_z: (G, K) log of the ratio of the normalisers of every leg's ends.
        log_z_bridge: (G, K) the same by stepping stones: the ratio over every step from the particles on both its ends
            (Bennett 1976), those of the upper end after they were moved. Where the two disagree by more than their
            error, the particles did not follow the path.
        end: (G,) where the last leg ended; 1 unless it was told to stop earlier.
        ancestors: (G, N) the particle at the path's start, of its group, from which each descends.
        plans: of every leg, how it was walked.
        step_size: (G,) of the kernel at the end.
        acceptance: mean acceptance probability of every rung, over groups.
        ess: least effective sample size, as a fraction, before resampling, over rungs and groups.
    """

    z: Tensor
    log_weights: Tensor
    log_z: Tensor
    log_z_bridge: Tensor
    end: Tensor
    step_size: Tensor
    ancestors: Tensor
    plans: list[Plan] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)
    ess: float = 1.0

    @property
    def num_rungs(self) -> int:
        """Over all legs."""
        return sum(plan.rungs.shape[1] for plan in self.plans)


def stage_legs(
    prior: RatioSequence, simplified: Callable[[RatioSequence], RatioSequence] = lambda prior: prior
) -> list[Leg]:
    """The path p_0, p_1, ..., p_K of a ratio sequence, a leg for every stage.

    `simplified` gives the same density as a sequence that is quicker to evaluate.
    """

    def ratio(stage: int) -> LogDensity:
        weights = prior.stage_weights(stage)
        return lambda z: functional_call(prior.network, weights, (z,))

    return [Leg(simplified(prior.prefix(k - 1)).log_density, ratio(k)) for k in range(1, prior.num_stages + 1)]
