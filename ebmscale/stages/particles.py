"""Particles of p_k, brought from prior to prior by sequential Monte Carlo: they find a ratio's gain and measure log Z.

Shapes: G groups, N particles of a group, Z coordinates, R rungs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ebmscale.density.estimates import matching_tilt, pooled
from ebmscale.density.moves import Noise
from ebmscale.density.path import Annealed, Annealing, Leg, Normaliser, WalkPlan
from ebmscale.density.prior import Base, RatioSequence
from ebmscale.density.resampling import resample_systematically
from ebmscale.density.smc import anneal
from ebmscale.errors import DivergenceError
from ebmscale.kernels.closed_form import last_leg, stage_legs
from ebmscale.model.sampler import log_density_of
from ebmscale.stages.draws import Draws
from ebmscale.stages.trainer import evaluated

ROUNDS = 4
"""Times that a strength is corrected, at most."""
SIGNIFICANT = 2.0
"""Standard errors by which the means of log p_{k-1} must differ for a correction."""
LEAST_SHARE = 0.2
"""Effective share of the particles in a correction; a larger one is made in several rounds."""
LEAST_POWER, MOST_POWER = 0.1, 1.5
"""Bounds of a power. A power above 1 also makes a mode that is too large larger still, so it has to stay small."""


@dataclass(frozen=True)
class Walkers:
    """Particles of one prior in groups that never mix.

    Attributes:
        name: of their noise.
        z: (G, N, Z).
        log_z: (G, K) of every group and stage, the log of what each ratio's normaliser grew by.
    """

    name: str
    z: Tensor
    log_z: Tensor

    @classmethod
    def of_base(cls, name: str, base: Base, groups: int, size: int, draws: Draws) -> "Walkers":
        """Exact draws of the base."""
        noise = draws.noise(groups * size, f"walkers/{name}", 0).normal(base.dim)
        z = base.from_noise(noise).view(groups, -1, base.dim)
        return cls(name, z, torch.zeros(groups, 0, dtype=torch.float64, device=z.device))

    @property
    def rows(self) -> Tensor:
        """All of them (G * N, Z)."""
        return self.z.flatten(0, 1)

    def normaliser(self) -> tuple[float, float]:
        """log Z of all stages and its standard error, from the spread of the groups."""
        return pooled(self.log_z.sum(1)) if self.log_z.shape[1] else (0.0, 0.0)

    def followed(
        self, legs: Sequence[Leg], plans: Sequence[WalkPlan], settings: Annealing, draws: Draws, stage: int
    ) -> "Walkers":
        """Where they are after legs that were planned by others, so that their estimates of Z are unbiased."""
        shared = [WalkPlan(*(part.expand(len(self.z), *part.shape[1:]) for part in plan)) for plan in plans]
        return self._moved(_walked(self, legs, settings, draws, stage, plans=shared), draws, stage)

    def walked(self, legs: Sequence[Leg], settings: Annealing, draws: Draws, stage: int) -> "Walkers":
        """Where they are after legs along which they find their own way."""
        return self._moved(_walked(self, legs, settings, draws, stage), draws, stage)

    def _moved(self, walked: Annealed, draws: Draws, stage: int) -> "Walkers":
        """The particles of a walk, resampled to equal weights."""
        groups, num, dim = walked.z.shape
        placed = draws.noise(groups, f"walkers/{self.name}/even", stage).uniform()
        chosen = resample_systematically(walked.log_weights, placed, num)
        z = walked.z.gather(1, chosen[:, :, None].expand(-1, -1, dim))
        return Walkers(self.name, z, torch.cat([self.log_z, walked.log_z], 1))


@dataclass(frozen=True)
class Strength:
    """How a ratio f is frozen: p_k is proportional to p_{k-1}^power e^(gain f).

    Attributes:
        gain: of the ratio; 0 where it cannot add to the bound.
        power: of the prior before it.
    """

    gain: float
    power: float = 1.0

    def append(self, sequence: RatioSequence, weights: Mapping[str, Tensor]) -> RatioSequence:
        """p_k, from p_{k-1} and the state dict of a `networks.Standardised` ratio."""
        return sequence.append({**weights, "gain": self.gain * weights["gain"]}, self.power)

    def added(self, sequence: RatioSequence, f: Tensor, z: Tensor) -> Tensor:
        """log p_k - log p_{k-1} + log Z_k - log Z_{k-1} (M,) at z (M, Z), from f (M,) there."""
        return self.gain * f if self.power == 1 else self.gain * f + (self.power - 1) * log_density_of(sequence, z)


@dataclass(frozen=True)
class Tilted:
    """Where the particles that find a ratio's strength were brought to.

    Attributes:
        strength: of the ratio.
        walkers: of p_k.
        plan: how they went, for others to follow; its last rung is 1.
    """

    strength: Strength
    walkers: Walkers
    plan: WalkPlan


def tilt(
    walkers: Walkers,
    sequence: RatioSequence,
    ratio: nn.Module,
    q: Tensor,
    limit: float,
    settings: Annealing,
    step: float,
    draws: Draws,
) -> Tilted:
    """Goes on to p_{k-1}^b e^(g f), where f and log p_{k-1} have the same means as under q.

    With s = log p_{k-1}, they maximise the bound g E_q[f] + (b - 1) E_q[s] - log E_{p_{k-1}}[e^(g f + (b - 1) s)] on
    KL(q || p_{k-1}). So samples of p_k and of q have the same mean log p_k. First b is 1, and g grows until the
    means of f meet. If the means of s then differ by more than their errors, the weights of the particles say which g
    and b make both meet, and the particles go there from p_{k-1}.

    Args:
        walkers: (1, N, Z) of p_{k-1}.
        sequence: p_{k-1}.
        ratio: f.
        q: (M, Z) samples of q.
        limit: of the gain.
        settings: how to walk.
        step: size to begin with.
        draws: noise.

    Raises:
        DivergenceError: the particles cannot follow.
    """
    settings = replace(settings, moves=replace(settings.moves, step_size=step))
    stage, weights = sequence.num_stages + 1, ratio.state_dict()

    def statistics(z: Tensor) -> Tensor:
        return torch.stack([evaluated(ratio, z), log_density_of(sequence, z)], 1)

    def walk(strength: Strength, until: float | None, limit: float) -> Annealed:
        leg = last_leg(strength.append(sequence, weights))
        return _walked(walkers, [leg], settings, draws, stage, until=until, limit=limit)

    of_q = statistics(q)
    walked = walk(Strength(1.0), float(of_q[:, 0].mean()), limit)
    strength = Strength(float(walked.end))
    moved = walkers._moved(walked, draws, stage)
    for _ in range(ROUNDS):
        better = _corrected(strength, statistics(moved.rows), of_q, limit)
        if better is None:
            break
        strength, walked = better, walk(better, None, 1.0)
        moved = walkers._moved(walked, draws, stage)
    plan, end = walked.plans[0], float(walked.end)
    plan = plan._replace(rungs=plan.rungs / end if end > 0 else plan.rungs)
    return Tilted(strength, moved, plan)


def _corrected(strength: Strength, of_p: Tensor, of_q: Tensor, limit: float) -> Strength | None:
    """The strength at which the means of f and of log p_{k-1} meet, or one on the way there.

    Args:
        strength: by which the particles were brought to p_k.
        of_p: (N, 2) f and log p_{k-1} at the particles.
        of_q: (M, 2) the same at samples of q.
        limit: of the gain.

    Returns:
        None if the means of log p_{k-1} meet already, or if the strength would leave its bounds.
    """
    differences = (of_q.mean(0) - of_p.mean(0)).abs()
    errors = (of_q.var(0) / len(of_q) + of_p.var(0) / len(of_p)).sqrt()
    if strength.gain <= 0 or not bool(differences[1] > SIGNIFICANT * errors[1]):
        return None
    gain, power = matching_tilt(of_p, of_q.mean(0), LEAST_SHARE).tolist()
    better = Strength(strength.gain + gain, strength.power + power)
    if not (0 < better.gain <= limit and LEAST_POWER <= better.power <= MOST_POWER):
        return None
    return better


def _walked(
    walkers: Walkers,
    legs: Sequence[Leg],
    settings: Annealing,
    draws: Draws,
    stage: int,
    plans: Sequence[WalkPlan] | None = None,
    until: float | None = None,
    limit: float = 1.0,
) -> Annealed:
    """A walk with the walkers' own noise.

    Raises:
        DivergenceError: the particles cannot follow.
    """
    rows = walkers.z.shape[0] * walkers.z.shape[1]

    def noise(leg: int, rung: int) -> Noise:
        return draws.noise(rows, f"walkers/{walkers.name}/{stage}-{leg}", rung)

    try:
        return anneal(legs, walkers.z, noise, settings, plans=plans, until=until, limit=limit)
    except ValueError as error:
        raise DivergenceError(
            f"The particles cannot follow the ratio ({error}); use a lower rate, or give more samples."
        ) from None


def measure_normalisers(
    sequence: RatioSequence, groups: int, size: int, settings: Annealing, draws: Draws
) -> list[Normaliser]:
    """log Z_1, ..., log Z_K by groups of new particles, each of which finds its own way from the base.

    Raises:
        DivergenceError: the particles cannot follow.
    """
    walkers = Walkers.of_base("final", sequence.base, groups, size, draws)
    walked = _walked(walkers, stage_legs(sequence), settings, draws, sequence.num_stages)
    found = []
    for stage in range(1, sequence.num_stages + 1):
        log_z, bridged = (pooled(one[:, :stage].sum(1)) for one in (walked.log_z, walked.log_z_bridge))
        found.append(Normaliser(*log_z, bridged[0]))
    return found
