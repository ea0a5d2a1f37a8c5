"""Paths from one density to another, the settings of a walk along a path, and its result; `smc.anneal` walks.

A *leg* is one segment of a path, from one density to the next. A *rung* is an intermediate density of a leg.

Shapes: M points, G groups, N particles of a group, Z latent, K legs, R rungs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ebmscale.density.langevin import Target, differentiate
from ebmscale.density.moves import MoveSettings
from ebmscale.density.prior import RatioSequence

LogDensity = Callable[[Tensor], Tensor]


class Normaliser(NamedTuple):
    """log Z_K of a sequence in nats, its standard error, and a second estimate (`Annealed.log_z_bridge`) as a check."""

    log_z: float
    error: float
    bridge: float


class Leg(NamedTuple):
    """A segment of a path. Both functions map z (M, Z) to (M,), and each entry depends on its own row alone.

    Attributes:
        log_density: log density at the start of the leg, up to a constant.
        increment: log density at the end of the leg minus that at its start, up to a constant.
        rung: maps t (M,) to the target of log_density + t * increment; a faster equal of automatic differentiation.
    """

    log_density: LogDensity
    increment: LogDensity
    rung: Callable[[Tensor], Target] | None = None

    def reversed(self) -> "Leg":
        """The leg from its end to its start."""
        return Leg(lambda z: self.log_density(z) + self.increment(z), lambda z: -self.increment(z))

    def target_at(self, t: Tensor) -> Target:
        """The density of the rungs t (M,), one for each point."""
        if self.rung is not None:
            return self.rung(t)
        return differentiate(lambda z: self.log_density(z) + t * self.increment(z))


class WalkPlan(NamedTuple):
    """Rungs and kernels of a leg, as an earlier walk with other particles found them.

    Attributes:
        rungs: (G, R) positions t in (0, 1], in ascending order. The last one is the end of the leg.
        step_size: (G, R) of the kernel at each rung, in units of `scale`.
        scale: (G, R, Z) standard deviations of the particles.
    """

    rungs: Tensor
    step_size: Tensor
    scale: Tensor

    def reversed(self) -> "WalkPlan":
        """The same rungs and kernels for the reversed leg."""
        below = torch.cat([torch.zeros_like(self.rungs[:, :1]), self.rungs[:, :-1]], dim=1)
        order = torch.arange(self.rungs.shape[1] - 1, -1, -1)
        kernels = (order - 1).clamp(min=0)  # of the rung where a step ends; at the start no kernel is used
        return WalkPlan(1 - below[:, order], self.step_size[:, kernels], self.scale[:, kernels])


@dataclass(frozen=True)
class Annealing:
    """Settings of a walk along a path.

    Attributes:
        ess: the conditional effective sample size, as a fraction, below which no step to the next rung goes.
        resample_below: a group whose effective sample size, as a fraction, is below this value is resampled. 0 is
            annealed importance sampling (Neal 2001), 1 resamples at every rung.
        moves: the Markov kernel.
    """

    ess: float = 0.7
    resample_below: float = 0.5
    moves: MoveSettings = field(default_factory=MoveSettings)


@dataclass
class Annealed:
    """The result of a walk.

    Attributes:
        z: (G, N, Z) particles.
        log_weights: (G, N), normalised in every group.
        log_z: (G, K) log of the ratio of the normalisers at the two ends of every leg.
        log_z_bridge: (G, K) the same by stepping stones: the ratio of every step is estimated from the particles at
            both its ends (Bennett 1976). Those of the upper end are taken after they were moved. If the two estimates
            differ by more than their errors, the particles did not follow the path.
        end: (G,) position t at which the last leg ended. It is 1 unless `until` or `limit` ended the leg earlier.
        ancestors: (G, N) the particle at the path's start, of its group, from which each descends.
        plans: rungs and kernels of every leg.
        step_size: (G,) of the kernel at the end.
        acceptance: mean acceptance probability of every rung, over groups.
        ess: lowest effective sample size before resampling, as a fraction, over rungs and groups.
    """

    z: Tensor
    log_weights: Tensor
    log_z: Tensor
    log_z_bridge: Tensor
    end: Tensor
    step_size: Tensor
    ancestors: Tensor
    plans: list[WalkPlan] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)
    ess: float = 1.0

    @property
    def num_rungs(self) -> int:
        """The number of rungs of all legs."""
        return sum(plan.rungs.shape[1] for plan in self.plans)


def stage_legs(prior: RatioSequence) -> list[Leg]:
    """The path p_0, p_1, ..., p_K of a ratio sequence, with one leg for every stage."""

    def leg(stage: int) -> Leg:
        before, after = prior.prefix(stage - 1), prior.prefix(stage)
        return Leg(before.log_density, lambda z: after.log_weight(z) - before.log_weight(z))

    return [leg(stage) for stage in range(1, prior.num_stages + 1)]
