"""Latents from the prior by chains, sequential Monte Carlo or importance resampling, with diagnostics.

- auto: importance resampling while its weights are good enough, else sequential Monte Carlo. For a prior that was
  learned on chains: chains.
- chain: Langevin chains through the stages, as in training. Fast; exact in the limit of small steps and long chains.
- smc: particles along p_0, ..., p_K are weighted, resampled and moved. Exact in the limit of many particles.
- sir: candidates of p_0 are resampled by the product of all ratios. Exact in the limit of many candidates, if p_0
  covers p_K.

Shapes: N samples, M candidates, C chains, T steps, Z latent.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ebmscale.density.langevin import ChainState, LangevinSettings, start, transition
from ebmscale.density.prior import RatioSequence
from ebmscale.errors import ConfigError
from ebmscale.evaluate.rounding import rounded, with_error
from ebmscale.evaluate.verdicts import of_samples
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.posterior import langevin_settings
from ebmscale.model.sampler import Sampled, by_particles, by_resampling, draw_density
from ebmscale.seeds import StreamNoise

Method = Literal["auto", "chain", "smc", "sir"]
METHODS: tuple[str, ...] = get_args(Method)
NUM_CHAINS, LONGER = 64, 4


@dataclass(frozen=True)
class Drawn:
    """Samples with their diagnostics.

    Attributes:
        z: (N, Z).
        diagnostics: values by name.
        method: how they were drawn, and why this method was chosen.
    """

    z: Tensor
    diagnostics: dict[str, float]
    method: str = ""

    def lines(self) -> list[str]:
        """The method, what the diagnostics mean, and then the diagnostics, one a line."""
        errors = {
            "log Z": "log Z standard error",
            "drift of the log density (standard deviations)": "drift's standard error",
        }
        lines = [f"drawn by {self.method}"] if self.method else []
        lines += [str(verdict) for verdict in of_samples(self.diagnostics)]
        for name, value in self.diagnostics.items():
            if name in errors:
                lines.append(f"{name}: {with_error(value, self.diagnostics[errors[name]])}")
            elif name not in errors.values():
                lines.append(f"{name}: {rounded(value)}")
        return lines


def draw(model: LatentModel, num: int, method: str = "auto", seed: int = 0, num_stages: int | None = None) -> Drawn:
    """Draws N = `num` latents of the prior p_K, or of p_k with k = `num_stages`.

    Raises:
        ConfigError: there is no such method.
    """
    prior = model.prior if num_stages is None else model.prior.prefix(num_stages)
    if method not in METHODS:
        raise ConfigError(f"There is no method {method!r} of sampling; use one of {', '.join(METHODS)}.")
    if method == "chain" or (method == "auto" and not model.config.uses_density):
        z, _ = model.sample_chains(num, seed, num_stages)
        settings = langevin_settings(model.config.prior, model.config.prior.sample_steps)
        return Drawn(z, chain_diagnostics(prior, z, settings, seed) if prior.num_stages else {}, "Langevin chains")
    how = {"auto": draw_density, "smc": by_particles, "sir": by_resampling}[method]
    drawn = how(prior, num, seed)
    return Drawn(drawn.z, drawn.figures | _pareto(drawn), f"{drawn.method}: {drawn.reason}")


def _pareto(drawn: Sampled) -> dict[str, float]:
    """Pareto k of the weights of importance resampling."""
    if drawn.log_weights is None or float(drawn.log_weights.std()) == 0:
        return {}
    return {"Pareto k": pareto_k(drawn.log_weights)}


def pareto_k(log_weights: Tensor) -> float:
    """The shape k of the generalised Pareto distribution of the largest weights e^log_weights (M,).

    The weights have a finite variance if k is below 1/2; above 0.7 their sums are not reliable (Vehtari et al. 2024).
    """
    from arviz_stats.base.array import array_stats  # noqa: PLC0415 (slow to import)

    # psislw takes log likelihoods; the weights are the inverses of the likelihoods
    return float(array_stats.psislw(-log_weights.numpy())[1])


def chain_diagnostics(prior: RatioSequence, z: Tensor, settings: LangevinSettings, seed: int = 0) -> dict[str, float]:
    """Diagnostics of the prior's Langevin chains from z: mixing, drift, and the acceptance that MALA would have.

    Up to `NUM_CHAINS` chains run `LONGER` times as many steps as the chain of a sample. R-hat and effective sample size
    (rank-normalised, Vehtari et al. 2021) are the worst values over coordinates and log density. The drift is the
    change of the mean log density from the first to the last quarter, in standard deviations of the log density.

    Args:
        prior: p_K.
        z: (N, Z) start of the chains.
        settings: of the chain of a sample.
        seed: of the noise.
    """
    num_steps, num = LONGER * settings.num_steps, min(len(z), NUM_CHAINS)
    z, prior = prior.coordinates(z), prior.in_coordinates()  # the chains take their steps in these coordinates
    noise = StreamNoise(seed, "chain-diagnostics", 0, [0] * num)
    state, path, log_densities, acceptance = start(prior.evaluate, z[:num]), [], [], []
    for _ in range(num_steps):
        moved, _ = transition(state, noise.normal(z.shape[1]), prior.evaluate, settings)
        acceptance.append(_acceptance(state, moved, settings.step_size))
        state = moved
        path.append(state.z)
        log_densities.append(state.log_density)
    values = torch.cat([torch.stack(path, 1), torch.stack(log_densities, 1)[:, :, None]], dim=2)
    figures = {"chains": float(num), "steps": float(num_steps), "acceptance": float(torch.stack(acceptance).mean())}
    if num > 1 and num_steps >= 4 and bool(values.isfinite().all()):
        from arviz_stats.base.array import array_stats  # noqa: PLC0415 (slow to import)

        series = values.double().permute(2, 0, 1).numpy()
        quarter = num_steps // 4
        change = values[:, -quarter:, -1].mean(1) - values[:, :quarter, -1].mean(1)
        figures |= {
            "largest R-hat": float(max(array_stats.rhat(one) for one in series)),
            "least effective sample size": float(min(array_stats.ess(one) for one in series)),
            "drift of the log density (standard deviations)": float(change.mean() / values[:, :, -1].std()),
            "drift's standard error": float(change.std() / math.sqrt(num) / values[:, :, -1].std()),
        }
    return figures


def _acceptance(before: ChainState, after: ChainState, step_size: float) -> Tensor:
    """The probability (C,) that MALA would accept a Langevin step."""
    half = 0.5 * step_size**2
    there = (after.z - before.z - half * before.score).square().sum(1)
    back = (before.z - after.z - half * after.score).square().sum(1)
    gain = after.log_density - before.log_density + 0.5 * (there - back) / step_size**2
    return gain.double().exp().clamp(max=1).nan_to_num(0.0)
