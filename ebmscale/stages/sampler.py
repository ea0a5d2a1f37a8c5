"""Samples of p_K: by importance resampling of the base's draws while that is enough, else by sequential Monte Carlo.

Shapes: N samples, M candidates, Z coordinates.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.density.evidence import effective_sample_size
from ebmscale.density.moves import MoveSettings
from ebmscale.density.path import Annealing
from ebmscale.density.prior import RatioSequence
from ebmscale.density.resampling import resample_systematically
from ebmscale.kernels.quadratics import merged
from ebmscale.stages.draws import Draws
from ebmscale.stages.particles import descended
from ebmscale.stages.supplies import total

CANDIDATES = 64
"""Draws of the base for a sample."""
ENOUGH = 2.0
"""Effective draws for a sample, from which on resampling is enough: most samples are then different."""
ANNEALING = Annealing(ess=0.7, resample_below=1.0, moves=MoveSettings(kind="mala", num_moves=6))


@dataclass(frozen=True)
class Sampled:
    """Samples of p_K, and how far they are independent ones.

    Attributes:
        z: (N, Z).
        method: "resampling" or "sequential Monte Carlo".
        reason: why this one.
        unique: share of the samples that are different ones.
        ancestors: share of the N particles at the path's start from which the samples descend; 1 for resampling.
    """

    z: Tensor
    method: str
    reason: str
    unique: float
    ancestors: float


def sample(sequence: RatioSequence, num: int, draws: Draws) -> Sampled:
    """N samples of p_K.

    Raises:
        DivergenceError: the particles cannot follow the ratios.
    """
    base = sequence.base
    if not sequence.num_stages:
        z = base.from_noise(draws.noise(num, "sample/base", 0).normal(base.dim))
        return Sampled(z, "exact draws", "the prior is the base itself", 1.0, 1.0)
    z = base.from_noise(draws.noise(CANDIDATES * num, "sample/candidates", 0).normal(base.dim))
    log_weights = total(merged(sequence), z).double()
    effective = effective_sample_size(log_weights) / num
    reason = f"{effective:.2g} effective draws of the base for a sample"
    if effective >= ENOUGH:
        placed = draws.noise(1, "sample/resampled", 0).uniform()
        chosen = resample_systematically(log_weights[None], placed, num)[0]
        chosen = chosen[torch.randperm(num, generator=torch.Generator().manual_seed(draws.seed))]
        return Sampled(z[chosen], "resampling", reason, len(chosen.unique()) / num, 1.0)
    moved, ancestors = descended(sequence, num, ANNEALING, draws)
    unique = len(torch.unique(moved, dim=0)) / num
    return Sampled(moved, "sequential Monte Carlo", reason, unique, len(ancestors.unique()) / num)


@dataclass(frozen=True)
class Agreement:
    """Whether samples of p_k and held-out samples of q have the same mean log density under p_k.

    Attributes:
        difference: mean log p_k of samples minus that of held-out ones, in nats.
        error: its standard error.
    """

    difference: float
    error: float

    @property
    def holds(self) -> bool:
        """Within three standard errors and below half a nat."""
        return abs(self.difference) <= 3 * self.error and abs(self.difference) < 0.5


def agreement(sequence: RatioSequence, samples: Tensor, held_out: Tensor, unique: float = 1.0) -> Agreement:
    """Compares mean log densities, whose normaliser cancels.

    Args:
        sequence: p_k.
        samples: (N, Z) of it.
        held_out: (M, Z) of q.
        unique: share of the samples that count as independent ones.
    """
    one, other = ((sequence.base.log_density(z) + total(sequence, z)).double() for z in (samples, held_out))
    error = math.sqrt(float(one.var()) / (len(one) * unique) + float(other.var()) / len(other))
    return Agreement(float(one.mean() - other.mean()), error)
