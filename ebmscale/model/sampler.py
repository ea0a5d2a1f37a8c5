"""Samples of p_K as a density: importance resampling of draws of p_0 while that is enough, else sequential Monte Carlo.

Both are followed by moves that leave p_K invariant, so that copies of one particle part. `agreement` is the check that
samples must pass.

Shapes: N samples, M candidates, G groups, Z latent.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ebmscale.density.estimates import importance_estimate
from ebmscale.density.evidence import effective_sample_size
from ebmscale.density.langevin import start
from ebmscale.density.moves import MoveSettings, adapted, jittered, move
from ebmscale.density.path import Annealing
from ebmscale.density.prior import RatioSequence
from ebmscale.density.resampling import resample_systematically
from ebmscale.density.smc import normaliser
from ebmscale.kernels.closed_form import closed_form_sum
from ebmscale.kernels.prior_chain import prior_target
from ebmscale.kernels.quadratics import merged
from ebmscale.model.normaliser import walk_prior
from ebmscale.seeds import StreamNoise, torch_generator

CANDIDATES_A_SAMPLE, LEAST_CANDIDATES = 64, 16_384
ENOUGH = 4.0
"""Effective draws of p_0 for a sample, from which on resampling is enough: most samples are then different."""
NUM_GROUPS, LEAST_PARTICLES, PARTICLES_A_SAMPLE = 8, 4096, 2
FEW, PARTICLES_OF_FEW = 32, 2048
"""So few samples take half of the least number of particles."""
LEAST_ANCESTORS = 0.02
"""Share of the samples that must descend from different draws of p_0; below it there are four times as many particles.
"""
MOST_PARTICLES = 65_536
CHECK_ERRORS, CHECK_NATS = 3.0, 0.5
"""How far mean log densities of samples and of held-out latents may differ: standard errors, and nats."""
POLISH = MoveSettings(kind="hmc", num_moves=8, step_size=0.2)
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Sampled:
    """Samples of p_K, and how far they are independent ones.

    Attributes:
        z: (N, Z).
        method: how they were drawn.
        reason: why so.
        unique: share of the samples that were different ones before the last moves.
        ancestors: share of the samples that descend from different draws of p_0.
        figures: further numbers by name.
        log_weights: (M,) of the draws of p_0 that were resampled, in float64; None where particles were moved.
    """

    z: Tensor
    method: str
    reason: str
    unique: float
    ancestors: float
    figures: dict[str, float] = field(default_factory=dict)
    log_weights: Tensor | None = None


def draw_density(prior: RatioSequence, num: int, seed: int = 0) -> Sampled:
    """N = `num` samples of p_K by the cheaper method that suffices.

    Args:
        prior: p_K.
        num: N.
        seed: of everything random.
    """
    if not prior.num_stages:
        noise = StreamNoise(seed, "sample", 0, [0] * num).normal(prior.base.dim)
        return Sampled(prior.base.from_noise(noise), "exact draws", "the prior is p_0", 1.0, 1.0)
    candidates = _candidates(prior, num, seed)
    if effective_sample_size(candidates.log_weights) >= ENOUGH * num:
        return _resampled(prior, candidates, num, seed)
    return by_particles(prior, num, seed)


def by_resampling(prior: RatioSequence, num: int, seed: int = 0) -> Sampled:
    """Draws of p_0, resampled by the product of all ratios. Exact in the limit of many draws, if p_0 covers p_K."""
    return _resampled(prior, _candidates(prior, num, seed), num, seed)


class _Candidates(NamedTuple):
    """Draws z (M, Z) of p_0 in its coordinates, and their log weights (M,) in float64."""

    z: Tensor
    log_weights: Tensor


def _candidates(prior: RatioSequence, num: int, seed: int) -> _Candidates:
    """The draws of p_0 of which N = `num` samples may be made."""
    size = max(LEAST_CANDIDATES, CANDIDATES_A_SAMPLE * num)
    inside = prior.in_coordinates()
    z = inside.base.from_noise(torch.randn(size, inside.base.dim, generator=torch_generator(seed, "sir")))
    return _Candidates(z, total(merged(inside), z).double())


def _resampled(prior: RatioSequence, candidates: _Candidates, num: int, seed: int) -> Sampled:
    log_weights = candidates.log_weights
    uniform = torch.rand(1, generator=torch_generator(seed, "sir-choice"))
    chosen = resample_systematically(log_weights[None], uniform, num)[0]
    log_z, error = importance_estimate(log_weights)
    effective, unique = effective_sample_size(log_weights), len(chosen.unique()) / num
    figures = {
        "log Z": float(log_z),
        "log Z standard error": float(error),
        "candidates": float(len(log_weights)),
        "effective sample size": effective,
        "different samples": float(len(chosen.unique())),
    }
    z = prior.from_coordinates(_polished(prior.in_coordinates(), candidates.z[_shuffled(chosen, seed)], seed))
    reason = f"{effective / num:.2g} effective draws of p_0 for a sample"
    return Sampled(z, "importance resampling", reason, unique, unique, figures, log_weights)


def by_particles(prior: RatioSequence, num: int, seed: int = 0) -> Sampled:
    """Particles along p_0, ..., p_K, weighted, resampled and moved. Exact in the limit of many particles."""
    size = max(PARTICLES_OF_FEW if num <= FEW else LEAST_PARTICLES, PARTICLES_A_SAMPLE * num)
    inside = prior.in_coordinates()
    while True:
        walked = walk_prior(inside, seed, range(NUM_GROUPS), math.ceil(size / NUM_GROUPS), Annealing())
        within = (walked.log_weights + walked.log_z.sum(1, keepdim=True)).flatten()
        uniform = torch.rand(1, generator=torch_generator(seed, "smc-choice"))
        chosen = resample_systematically(within[None], uniform, num)[0]
        group = chosen // walked.z.shape[1]
        ancestors = group * walked.z.shape[1] + walked.ancestors.flatten()[chosen]
        surviving = len(ancestors.unique()) / num
        if surviving >= LEAST_ANCESTORS or size >= MOST_PARTICLES:
            break
        size *= 4
    found, unique = normaliser(walked), len(chosen.unique()) / num
    figures = {
        "log Z": found.log_z,
        "log Z standard error": found.error,
        "log Z by stepping stones": found.bridge,
        "particles": float(size),
        "surviving ancestors": float(len(ancestors.unique())),
        "rungs": float(walked.num_rungs),
        "least effective sample size (fraction)": walked.ess,
        "least mean acceptance": min(walked.acceptance, default=1.0),
    }
    z = _polished(inside, walked.z.flatten(0, 1)[_shuffled(chosen, seed)], seed)
    reason = "too few draws of p_0 count under the ratios"
    return Sampled(prior.from_coordinates(z), "sequential Monte Carlo", reason, unique, surviving, figures)


@dataclass(frozen=True)
class Agreement:
    """Whether samples of p_k and held-out samples of q have the same mean log density under p_k.

    Attributes:
        difference: mean log p_k of samples minus that of held-out ones, in nats.
        error: its standard error.
        of_samples: mean log p_k of samples, up to log Z_k, and its standard error.
        of_held_out: the same of held-out samples of q.
    """

    difference: float
    error: float
    of_samples: tuple[float, float]
    of_held_out: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether it is within three standard errors and below half a nat."""
        return abs(self.difference) <= CHECK_ERRORS * self.error and abs(self.difference) < CHECK_NATS

    @property
    def fails(self) -> bool:
        """See `fails_check`."""
        return fails_check(self.difference, self.error)


def fails_check(difference: float, error: float) -> bool:
    """Whether a difference of mean log densities is surely there, and large; one that is not a number fails too."""
    return not (abs(difference) <= CHECK_ERRORS * error or abs(difference) <= CHECK_NATS)


def agreement(prior: RatioSequence, samples: Tensor, held_out: Tensor, unique: float = 1.0) -> Agreement:
    """Compares mean log densities, whose normaliser cancels.

    Args:
        prior: p_k.
        samples: (N, Z) of it.
        held_out: (M, Z) of q.
        unique: share of the samples that count as independent ones.
    """
    one, other = (log_density_of(prior, z) for z in (samples, held_out))
    of_samples = float(one.mean()), math.sqrt(float(one.var()) / max(len(one) * unique, 1))
    of_held_out = float(other.mean()), math.sqrt(float(other.var()) / len(other))
    return Agreement(of_samples[0] - of_held_out[0], math.hypot(of_samples[1], of_held_out[1]), of_samples, of_held_out)


@torch.no_grad()
def total(prior: RatioSequence, z: Tensor) -> Tensor:
    """`prior.log_weight` at z (N, Z), as (N,), in parts that fit in a cache."""
    if not prior.num_stages:
        return torch.zeros(len(z), device=z.device)
    in_closed_form = closed_form_sum(prior)
    if in_closed_form is not None:
        return in_closed_form(z)
    return torch.cat([prior.log_weight(part) for part in z.split(ROWS_AT_ONCE)])


@torch.no_grad()
def log_density_of(prior: RatioSequence, z: Tensor) -> Tensor:
    """`prior.log_density` at z (N, Z), as (N,) in float64."""
    return total(prior, z).double() + prior.base.log_density(z).double()


def _polished(prior: RatioSequence, z: Tensor, seed: int) -> Tensor:
    """The samples after moves that leave p_K invariant; their step adapts to them."""
    target, scale = prior_target(merged(prior)), z.std(0, keepdim=True).clamp(min=1e-12)
    noise = StreamNoise(seed, "polish", 0, [0] * len(z))
    state, step = start(target, z), torch.full((1,), POLISH.step_size, dtype=torch.float64)
    for _ in range(POLISH.num_moves if len(z) > 1 else 0):
        steps = jittered(step.expand(len(z)), noise.uniform(), POLISH)
        state, accepted = move(state, noise.normal(z.shape[1]), noise.uniform(), target, steps, scale, POLISH)
        step = adapted(step, accepted.mean()[None].double(), POLISH)
    return state.z


def _shuffled(chosen: Tensor, seed: int) -> Tensor:
    return chosen[torch.randperm(len(chosen), generator=torch_generator(seed, "shuffle"))]
