"""Which form of the generator the posterior chains run through: the one place where that is chosen.

A form is used only where it was seen to agree with the generator and, if it was not asked for by name, to be faster.

Shapes: B rows, Z latent.
"""

import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ebmscale.kernels.batch_inner import BatchInnerGenerator
from ebmscale.kernels.rate import clock_s

log = logging.getLogger(__name__)

FormName = Literal["plain", "batch_inner"]
LEAST_PASS_S = 5e-3
"""A pass that takes less is left alone: there is nothing to win, and every run of a small network computes the same."""
GAIN = 0.9
"""The fraction of the plain form's time that another one has to stay below."""
REPEATS = 3
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest relative difference between the two forms' gradients (their norm). In bf16 both are 0.05 from fp32."""


def form_of(name: FormName, generator: nn.Module) -> nn.Module:
    """The generator in a form; of one that is not `plain`, `load` takes the weights once they have changed."""
    return BatchInnerGenerator(generator) if name == "batch_inner" else generator


def choose_form(generator: nn.Module, latent_dim: int, num_rows: int, wanted: str = "auto") -> FormName:
    """The form for chains of `num_rows` rows through a generator without gradients, measured on its device.

    Args:
        generator: the sampling copy's.
        latent_dim: Z.
        num_rows: B.
        wanted: `auto`, or a form by name, which is then taken if it can be.
    """
    weight = next(generator.parameters())
    if wanted == "plain" or (wanted == "auto" and weight.device.type != "cpu"):
        return "plain"
    if not BatchInnerGenerator.supports(generator):
        log.info("posterior chains: plain generator; %s has layers that batch_inner does not know", type(generator))
        return "plain"
    noise = torch.randn(num_rows, latent_dim, generator=torch.Generator().manual_seed(0))
    z = noise.to(weight.device, weight.dtype)
    plain_s = _pass_seconds(generator, z, REPEATS)
    if wanted == "auto" and plain_s < LEAST_PASS_S:
        return "plain"
    other = BatchInnerGenerator(generator)
    expected, got = _gradient(generator, z), _gradient(other, z)
    difference = float((got - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= TOLERANCE.get(weight.dtype, 0.0):
        log.warning("posterior chains: plain generator; batch_inner's gradients differ by %.1e here", difference)
        return "plain"
    plain_s, other_s = (_pass_seconds(form, z, REPEATS) for form in (generator, other))
    chosen: FormName = "batch_inner" if wanted == "batch_inner" or other_s < GAIN * plain_s else "plain"
    log.info(
        "posterior chains: %s generator; forward and gradient of %d rows take %.1f ms plain, %.1f ms batch_inner",
        chosen, num_rows, plain_s * 1e3, other_s * 1e3,
    )  # fmt: skip
    return chosen


def _gradient(generator: nn.Module, z: Tensor) -> Tensor:
    """Gradient of the sum of squared pixels."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(generator(z).float().square().sum(), z)
    return gradient.float()


def _pass_seconds(generator: nn.Module, z: Tensor, repeats: int) -> float:
    """Least seconds of a forward pass with the gradient in z, after one that is not counted."""
    _gradient(generator, z)
    return min(_seconds(lambda: _gradient(generator, z), z.device) for _ in range(repeats))


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    begin = clock_s(device)
    action()
    return clock_s(device) - begin
