"""Chains of the prior, and the choice of their implementation.

On a GPU one Triton kernel runs all steps over all ratios, if it supports the networks (`kernels.fused_chain`).
Otherwise a step uses the score in closed form (`kernels.closed_form`), if that supports the networks. Otherwise
autograd computes the score. Autograd is the definition, which both others must equal.

Shapes: N chains, Z latent, T steps.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ebmscale.density.langevin import ChainTrace, LangevinSettings, Target, run_chain, start
from ebmscale.density.prior import Base, RatioSequence
from ebmscale.kernels.closed_form import closed_form_target

log = logging.getLogger(__name__)

STEPS_A_LAUNCH = 25
"""Steps of one launch of a fused chain. The caller may end the chain between two launches."""
TRIAL_CHAINS, TRIAL_STEPS, TOLERANCE = 64, 3, 0.02
"""Chains and steps of the test of the fused kernel, and the largest relative error (in norm) of their displacement."""

_verdicts: dict[tuple[object, ...], str | None] = {}


def prior_target(prior: RatioSequence, dtype: torch.dtype | None = None) -> Target:
    """`prior.evaluate` by the fastest implementation that supports the networks.

    Args:
        prior: p_k.
        dtype: of networks and activations in the closed form (default: that of the weights).
    """
    if not prior.weights:
        return prior.evaluate
    inside = prior.in_coordinates()
    if inside is not prior:
        return _through_coordinates(prior_target(inside, dtype), prior.base)
    target = closed_form_target(prior, dtype)
    if target is None:
        _log_choice("autograd", f"the networks ({type(prior.network).__name__}) have no closed form here")
        return prior.evaluate
    return target


def _through_coordinates(inside: Target, base: Base) -> Target:
    """The target at points z of a target in the base's coordinates."""

    def target(z: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = inside(base.coordinates(z))
        return log_density - base.log_volume, base.score_from(score)

    return target


def run_prior_chain(
    prior: RatioSequence,
    z: Tensor,
    noise: Tensor,
    settings: LangevinSettings,
    after_step: Callable[[], None] = lambda: None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ChainTrace]:
    """The ends (N, Z) of Langevin chains under a prior, and their trace. The target is not evaluated at the ends.

    The steps are taken in the coordinates of the base. So on a `MomentBase` they are preconditioned by its covariance.

    Args:
        prior: p_k.
        z: (N, Z) start of the chains.
        noise: (N, T, Z) standard normal.
        settings: of the chains.
        after_step: called after every step, or after every launch of a fused chain. An exception that it raises ends
            the chain.
        dtype: of networks and activations if the chain is not fused (default: that of the weights). The products of a
            fused chain are in bf16. Latents and sums are in fp32.
    """
    inside = prior.in_coordinates()
    if inside is not prior:
        white, trace = run_prior_chain(inside, prior.coordinates(z), noise, settings, after_step, dtype)
        return prior.base.from_coordinates(white), trace
    if z.device.type == "cuda" and prior.weights and z.numel() and settings.num_steps:
        reason = _unfused_reason(prior, z, noise, settings)
        if reason is None:
            from ebmscale.kernels import fused_chain  # noqa: PLC0415 (triton need not be installed)

            _log_choice("fused", "one Triton kernel for all steps and ratios")
            return fused_chain.run(prior, z, noise, settings, STEPS_A_LAUNCH, after_step)
        _log_choice("closed form", reason)
    target = prior_target(prior, dtype)
    end, trace = run_chain(target, start(target, z), noise, settings, after_step, evaluate_end=False)
    return end.z, trace


def _unfused_reason(prior: RatioSequence, z: Tensor, noise: Tensor, settings: LangevinSettings) -> str | None:
    """Why the fused kernel is not used; None if it is. Its results are tested once for every set of shapes."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    from ebmscale.kernels import fused_chain  # noqa: PLC0415

    reason = fused_chain.unsupported_reason(prior, z)
    if reason is not None:
        return reason
    if noise.numel() >= 2**31:
        return "the kernel counts the numbers of the noise in 32 bits"
    key = (z.device, *(tuple(weight.shape) for weight in prior.weights.values()))
    if key not in _verdicts:
        short = replace(settings, num_steps=min(TRIAL_STEPS, settings.num_steps))
        _verdicts[key] = _trial(prior, z[:TRIAL_CHAINS], noise[:TRIAL_CHAINS, : short.num_steps], short)
    return _verdicts[key]


def _trial(prior: RatioSequence, z: Tensor, noise: Tensor, settings: LangevinSettings) -> str | None:
    """Runs a few steps of a few chains, fused and by definition. Returns why the kernel fails; None if they agree."""
    from ebmscale.kernels import fused_chain  # noqa: PLC0415

    try:
        got, _ = fused_chain.run(prior, z, noise, settings, settings.num_steps)
    except Exception as error:  # Triton may raise anything if a kernel does not fit a device
        return f"the fused kernel does not run on this device ({type(error).__name__})"
    wanted = run_chain(prior.evaluate, start(prior.evaluate, z), noise, settings, evaluate_end=False)[0].z
    error_of = float((got - wanted).norm() / (wanted - z).norm().clamp_min(1e-12))
    return None if error_of <= TOLERANCE else f"the fused kernel is off by {error_of:.1e} on this device"


@functools.lru_cache
def _log_choice(form: str, reason: str) -> None:
    """Logs a choice once."""
    log.info("prior chains: %s; %s", form, reason)
