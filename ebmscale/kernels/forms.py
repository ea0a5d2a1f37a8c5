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
from ebmscale.kernels.compiled import compiled
from ebmscale.kernels.rate import clock_s

log = logging.getLogger(__name__)

FormName = Literal["plain", "batch_inner", "compiled"]
MADE_FOR: dict[FormName, str] = {"batch_inner": "cpu", "compiled": "cuda"}
"""The kind of device that a form is for."""
LEAST_PASS_S = {"cpu": 5e-3, "cuda": 2e-4}
"""A pass that takes less is left alone: there is nothing to win, and every run of a small network computes the same."""
GAIN = 0.9
"""The fraction of the plain form's time that another one has to stay below."""
REPEATS = 3
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest relative difference between the two forms' gradients (their norm). In bf16 both are 0.05 from fp32."""


def form_of(name: FormName, generator: nn.Module) -> nn.Module:
    """The generator in a form; of `batch_inner`, `load` takes the weights once they have changed."""
    makers: dict[FormName, Callable[[nn.Module], nn.Module]] = {
        "batch_inner": BatchInnerGenerator,
        "compiled": compiled,
    }
    return makers[name](generator) if name in makers else generator


def is_for(name: FormName, device: torch.device) -> bool:
    """Whether a form was made for such a device."""
    return MADE_FOR.get(name, device.type) == device.type


def choose_form(generator: nn.Module, latent_dim: int, num_rows: int, wanted: str = "auto") -> FormName:
    """The form for chains of `num_rows` rows through a generator without gradients, measured on its device.

    Args:
        generator: the sampling copy's.
        latent_dim: Z.
        num_rows: B.
        wanted: `auto`, or a form by name, which is then taken if it can be.
    """
    weight = next(generator.parameters())
    name = next((one for one in MADE_FOR if wanted == one or (wanted == "auto" and is_for(one, weight.device))), None)
    if name is None:
        return "plain"
    if name == "batch_inner" and not BatchInnerGenerator.supports(generator):
        log.info("posterior chains: plain generator; %s has layers that batch_inner does not know", type(generator))
        return "plain"
    noise = torch.randn(num_rows, latent_dim, generator=torch.Generator().manual_seed(0))
    z = noise.to(weight.device, weight.dtype)
    if wanted == "auto" and _pass_seconds(generator, z, REPEATS) < LEAST_PASS_S[weight.device.type]:
        return "plain"
    other = form_of(name, generator)
    expected = _gradient(generator, z)
    try:
        got = _gradient(other, z)
    except Exception as error:  # whatever a compiler raises where it cannot
        if name != "compiled":
            raise
        log.warning("posterior chains: plain generator; it cannot be compiled here (%s)", type(error).__name__)
        return "plain"
    difference = float((got - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= TOLERANCE.get(weight.dtype, 0.0):
        log.warning("posterior chains: plain generator; %s's gradients differ by %.1e here", name, difference)
        return "plain"
    plain_s, other_s = (_pass_seconds(form, z, REPEATS) for form in (generator, other))
    chosen: FormName = name if wanted == name or other_s < GAIN * plain_s else "plain"
    log.info(
        "posterior chains: %s generator; forward and gradient of %d rows take %.2f ms plain, %.2f ms %s",
        chosen, num_rows, plain_s * 1e3, other_s * 1e3, name,
    )  # fmt: skip
    return chosen


def _gradient(generator: nn.Module, z: Tensor) -> Tensor:
    """Gradient of the sum of squared pixels."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(generator(z).float().square().sum(), z)
    return gradient.float()


def _pass_seconds(generator: nn.Module, z: Tensor, repeats: int) -> float:
    """Least seconds of a forward pass with the gradient in z, after one that is not counted; on a GPU of its graph."""
    _gradient(generator, z)
    action: Callable[[], object] = lambda: _gradient(generator, z)  # noqa: E731
    if z.is_cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            _gradient(generator, z)
        action = graph.replay
    return min(_seconds(action, z.device) for _ in range(repeats))


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    begin = clock_s(device)
    action()
    return clock_s(device) - begin
