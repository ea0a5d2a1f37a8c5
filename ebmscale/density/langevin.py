"""Unadjusted Langevin dynamics: one transition as a pure function, and chains of transitions.

A *target* maps z (N, Z) to its log density (N,), up to a constant, and to its score (N, Z), the gradient of the log
density. Noise is an argument, so a chain depends on its arguments alone.

Shapes: N chains, Z latent, T steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Target = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LangevinSettings:
    """One Langevin step: z <- z + (s^2 / 2) score / temperature + s * noise_scale * noise.

    With `noise_scale` = `temperature` = 1 the chain samples the target in the limit of small steps. With a temperature
    t it samples density^(1/t). A `noise_scale` below 1 also lowers the temperature; much published code uses one
    without saying so.

    Attributes:
        num_steps: T, transitions in a chain.
        step_size: s.
        noise_scale: factor of the noise.
        temperature: divides the score.
    """

    num_steps: int
    step_size: float
    noise_scale: float = 1.0
    temperature: float = 1.0


class ChainState(NamedTuple):
    """Positions of the chains, and the target at these positions.

    Attributes:
        z: (N, Z) positions.
        log_density: (N,) of the target, up to a constant.
        score: (N, Z) of the target.
    """

    z: Tensor
    log_density: Tensor
    score: Tensor


class TransitionInfo(NamedTuple):
    """Mean lengths (scalars) of the two parts of a step: `drift` (the score) and `diffusion` (the noise)."""

    drift: Tensor
    diffusion: Tensor


class ChainTrace(NamedTuple):
    """Diagnostics of a chain, one value a step (T,): mean log density, mean lengths of drift and diffusion.

    The log density is taken after the step. Where the end of the chain is not evaluated, it is taken before the step.
    """

    log_density: Tensor
    drift: Tensor
    diffusion: Tensor


def differentiate(log_density: Callable[[Tensor], Tensor]) -> Target:
    """A target from a differentiable log density. Only the gradient in z is computed, none of parameters.

    Args:
        log_density: maps z (N, Z) to (N,). Each entry must depend on its own row alone.
    """

    def target(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = log_density(z)
            (score,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), score

    return target


def start(target: Target, z: Tensor) -> ChainState:
    """The state of chains at z (N, Z)."""
    return ChainState(z.detach(), *target(z))


def transition(
    state: ChainState, noise: Tensor, target: Target, settings: LangevinSettings
) -> tuple[ChainState, TransitionInfo]:
    """One unadjusted Langevin step with the given standard normal `noise` (N, Z)."""
    z, info = propose(state, noise, settings)
    return start(target, z), info


def propose(state: ChainState, noise: Tensor, settings: LangevinSettings) -> tuple[Tensor, TransitionInfo]:
    """The positions (N, Z) after the step of `transition`. The target is not evaluated there."""
    drift = (0.5 * settings.step_size**2 / settings.temperature) * state.score
    diffusion = (settings.step_size * settings.noise_scale) * noise
    return state.z + drift + diffusion, TransitionInfo(drift.norm(dim=1).mean(), diffusion.norm(dim=1).mean())


def run_chain(
    target: Target,
    state: ChainState,
    noise: Tensor,
    settings: LangevinSettings,
    after_step: Callable[[], None] = lambda: None,
    evaluate_end: bool = True,
) -> tuple[ChainState, ChainTrace]:
    """Runs T = `settings.num_steps` transitions from a state (see `start`) with noise (N, T, Z).

    Args:
        target: log density and score.
        state: the start of the chains.
        noise: (N, T, Z) standard normal.
        settings: of the chain.
        after_step: called after every transition. An exception that it raises ends the chain.
        evaluate_end: whether to evaluate the target at the end of the chain. If not, one evaluation is saved, and log
            density and score of the end are NaN.

    Raises:
        ValueError: the noise is not (N, T, Z).
    """
    expected = (state.z.shape[0], settings.num_steps, state.z.shape[1])
    if tuple(noise.shape) != expected:
        raise ValueError(f"noise of a chain must be (chains, steps, latent) = {expected}, not {tuple(noise.shape)}")
    means, drifts, diffusions = [], [], []
    for step in range(settings.num_steps):
        before = state.log_density.mean()
        z, info = propose(state, noise[:, step], settings)
        if evaluate_end or step + 1 < settings.num_steps:
            state = start(target, z)
        else:
            state = ChainState(z, torch.full_like(state.log_density, torch.nan), torch.full_like(z, torch.nan))
        means.append(state.log_density.mean() if evaluate_end else before)
        drifts.append(info.drift)
        diffusions.append(info.diffusion)
        after_step()
    empty = state.z.new_zeros(0)
    return state, ChainTrace(*(torch.stack(part) if part else empty for part in (means, drifts, diffusions)))
