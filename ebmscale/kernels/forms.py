"""Chooses the form of the generator for the posterior chains.

A *form* is an implementation of the generator's forward and backward pass. A form is used only if its gradients were
measured to agree with those of the generator. Unless it was requested by name, it must also have been faster.

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
from ebmscale.networks import weight_of

log = logging.getLogger(__name__)

FormName = Literal["plain", "batch_inner", "compiled"]
MADE_FOR: dict[FormName, str] = {"batch_inner": "cpu", "compiled": "cuda"}
"""The kind of device for which a form was made."""
LEAST_PASS_S = {"cpu": 5e-3, "cuda": 2e-4}
"""If a pass takes less time, the plain form is used. So runs of a small network do not depend on the measurement."""
GAIN = 0.9
"""Another form must take less than this fraction of the time of the plain form."""
REPEATS = 3
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest relative difference (in norm) between the gradients of two forms. In bf16 both differ by 0.05 from fp32."""


def form_of(name: FormName, generator: nn.Module) -> nn.Module:
    """The generator in a form. After its weights change, `load` of the form `batch_inner` takes the new ones."""
    makers: dict[FormName, Callable[[nn.Module], nn.Module]] = {
        "batch_inner": BatchInnerGenerator,
        "compiled": compiled,
    }
    return makers[name](generator) if name in makers else generator


def is_for(name: FormName, device: torch.device) -> bool:
    """Whether a form was made for the kind of this device."""
    return MADE_FOR.get(name, device.type) == device.type


def choose_form(generator: nn.Module, latent_dim: int, num_rows: int, wanted: str = "auto") -> FormName:
    """The form for chains of `num_rows` rows, measured on the device of the generator.

    Args:
        generator: that of the sampling copy, whose parameters need no gradient.
        latent_dim: Z.
        num_rows: B.
        wanted: `auto`, or the name of a form, which is then used if it supports the generator.
    """
    weight = weight_of(generator)
    name = next((one for one in MADE_FOR if wanted == one or (wanted == "auto" and is_for(one, weight.device))), None)
    if name is None:
        return "plain"
    if name == "batch_inner" and not BatchInnerGenerator.supports(generator):
        log.info("posterior chains: plain generator; %s has layers that batch_inner does not support", type(generator))
        return "plain"
    noise = torch.randn(num_rows, latent_dim, generator=torch.Generator().manual_seed(0))
    z = noise.to(weight.device, weight.dtype)
    if wanted == "auto" and _pass_seconds(generator, z, REPEATS) < LEAST_PASS_S[weight.device.type]:
        return "plain"
    other = form_of(name, generator)
    expected = _gradient(generator, z)
    try:
        got = _gradient(other, z)
    except Exception as error:  # a compiler may raise anything
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
    """Gradient (B, Z) of the sum of squared pixels with respect to z (B, Z)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(generator(z).float().square().sum(), z)
    return gradient.float()


def _pass_seconds(generator: nn.Module, z: Tensor, repeats: int) -> float:
    """Shortest time in seconds of a forward pass and its gradient in z, after one untimed pass; on a GPU as a graph."""
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
