"""Langevin dynamics as a pure transition, and chains of it.

A *target* maps z (N, Z) to its log density (N,), up to a constant, and its score (N, Z), the gradient of the log
density. Noise is handed in, so a chain is a function of its arguments and of nothing else.

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

    With `noise_scale` = `temperature` = 1 this is the exact pair whose small-step limit samples the target;
    a temperature t samples density^(1/t); a `noise_scale` below 1 is the hidden temperature of much published
    code, said openly.

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
    """Where the chains are.

    Attributes:
        z: (N, Z) positions.
        log_density: (N,) of the target there, up to a constant.
        score: (N, Z) of the target there.
    """

    z: Tensor
    log_density: Tensor
    score: Tensor


class TransitionInfo(NamedTuple):
    """What a transition did: `drift` and `diffusion` are the mean lengths of the two parts of the move (scalars)."""

    drift: Tensor
    diffusion: Tensor


class ChainTrace(NamedTuple):
    """Diagnostics of a chain, one value a step (T,): mean log density, mean drift and diffusion lengths.

    The log density is that after the step; where the chain's end is not evaluated, that before it.
    """

    log_density: Tensor
    drift: Tensor
    diffusion: Tensor


def differentiate(log_density: Callable[[Tensor], Tensor]) -> Target:
    """A target from a differentiable log density; only the gradient in z is computed, never one of parameters.

    Args:
        log_density: maps z (N, Z) to (N,), each entry depending on its own row alone.
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
    z, info = move(state, noise, settings)
    return start(target, z), info


def move(state: ChainState, noise: Tensor, settings: LangevinSettings) -> tuple[Tensor, TransitionInfo]:
    """Where the step of `transition` leads, without evaluating the target there."""
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
        state: the chains' start.
        noise: (N, T, Z) standard normal.
        settings: of the chain.
        after_step: called after every transition; what it raises ends the chain.
        evaluate_end: whether the target is evaluated at the chain's end; else one evaluation less is made, and the end
            has nan for log density and score.

    Raises:
        ValueError: the noise is not (N, T, Z).
    """
    expected = (state.z.shape[0], settings.num_steps, state.z.shape[1])
    if tuple(noise.shape) != expected:
        raise ValueError(f"noise of a chain must be (chains, steps, latent) = {expected}, not {tuple(noise.shape)}")
    means, drifts, diffusions = [], [], []
    for step in range(settings.num_steps):
        before = state.log_density.mean()
        z, info = move(state, noise[:, step], settings)
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
