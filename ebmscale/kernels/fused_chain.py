"""Chains of the prior in one Triton kernel: all T Langevin steps over all K ratio networks, one launch.

A program keeps its chains in registers from the first step to the last; the stacked weights, which fit into the cache
of a GPU, are the only thing it reads again. Products are in bf16 (or fp32), sums, activations and the latent in fp32.
The noise is handed in, or drawn inside from a counter, so that it needs no memory.

Known are networks of two hidden layers, SiLU, LeakyReLU or GELU between them, and p_0 = N(0, I). Everything is padded
to the tiles of a tensor core with zeros, which no activation here turns into anything else.

Shapes: N chains, Z latent, K stages, T steps, H hidden units.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from ebmscale.density.langevin import ChainTrace, LangevinSettings
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.kernels.closed_form import StackedMlp, stacked

MOST_UNITS = 256
"""The widest padded layer whose tiles fit into the shared memory of a GPU."""
TILE = 64
"""Units of the second hidden layer taken at once."""
SILU, LEAKY_RELU, GELU = 0, 1, 2


def why_not(prior: RatioSequence, z: Tensor) -> str | None:
    """Why the kernel cannot run these chains; None if it can."""
    networks = stacked(prior)
    if networks is None or len(networks.weights) != 3:
        return "the ratio networks do not have two hidden layers of a known kind"
    if type(prior.base) is not StandardNormal:
        return "p_0 is not N(0, I)"
    if z.dtype != torch.float32:
        return f"the latents are {z.dtype}, not float32"
    widths = [_padded(size) for size in (*networks.weights[0].shape[1:], networks.weights[1].shape[1])]
    if max(widths) > MOST_UNITS:
        return f"a layer of the ratio networks has more than {MOST_UNITS} units"
    return None


def run(
    prior: RatioSequence,
    z: Tensor,
    noise: Tensor | int,
    settings: LangevinSettings,
    steps_a_launch: int,
    after_launch: Callable[[], None] = lambda: None,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, ChainTrace]:
    """The chains' ends (N, Z) and their trace, as `density.langevin.run_chain` gives them without evaluating the end.

    Args:
        prior: one that `why_not` has nothing against.
        z: (N, Z) where the chains start.
        noise: (N, T, Z) standard normal; or the seed of the kernel's own (see `counter_noise`).
        settings: of the chains.
        steps_a_launch: steps of one launch of the kernel.
        after_launch: called after every launch; what it raises ends the chains.
        dtype: of the products.
    """
    networks = stacked(prior)
    if networks is None or (reason := why_not(prior, z)) is not None:
        raise ValueError(f"the fused chain cannot run: {reason if networks is not None else 'no known networks'}")
    weights = _padded_weights(networks, dtype)
    ends = z.detach().contiguous().clone()
    shape = (len(z), settings.num_steps)
    log_density, drift, diffusion = (torch.empty(shape, device=z.device) for _ in range(3))
    traces = (log_density, drift, diffusion)
    for first in range(0, settings.num_steps, steps_a_launch):
        _launch(
            ends, noise, first, min(first + steps_a_launch, settings.num_steps), settings, networks, weights, traces
        )
        after_launch()
    constant = 0.5 * prior.base.dim * math.log(2 * math.pi)
    return ends, ChainTrace(log_density.mean(0) - constant, drift.mean(0), diffusion.mean(0))


def counter_noise(seed: int, num_chains: int, num_steps: int, dim: int, device: torch.device | str) -> Tensor:
    """The noise (N, T, Z) that `run` draws inside from a seed."""
    noise = torch.empty(num_chains, num_steps, dim, device=device)
    block = 256
    _noise_kernel[(triton.cdiv(noise.numel(), block),)](noise, seed, noise.numel(), BLOCK=block)
    return noise


def _launch(
    z: Tensor,
    noise: Tensor | int,
    first: int,
    last: int,
    settings: LangevinSettings,
    networks: StackedMlp,
    weights: tuple[Tensor, ...],
    traces: tuple[Tensor, Tensor, Tensor],
) -> None:
    num_stages, hidden_1, padded_dim = weights[0].shape
    drawn = isinstance(noise, int)
    source = z if isinstance(noise, int) else noise.to(torch.float32).contiguous()
    activation = networks.activation
    kind = {nn.SiLU: SILU, nn.LeakyReLU: LEAKY_RELU, nn.GELU: GELU}[type(activation)]
    slope = activation.negative_slope if isinstance(activation, nn.LeakyReLU) else 0.0
    block = 16 if len(z) < 8192 else 32
    _chain_kernel[(triton.cdiv(len(z), block),)](
        z, source, noise if isinstance(noise, int) else 0, *weights, *traces,
        len(z), z.shape[1], settings.num_steps, first, last,
        0.5 * settings.step_size**2 / settings.temperature, settings.step_size * settings.noise_scale, slope,
        NUM_STAGES=num_stages, DIM=padded_dim, HIDDEN_1=hidden_1, HIDDEN_2=weights[2].shape[1], TILE=TILE, BLOCK=block,
        KIND=kind, DRAWN=drawn, UPCAST=not isinstance(_chain_kernel, triton.JITFunction), num_warps=8,
    )  # fmt: skip


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _padded_weights(networks: StackedMlp, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """W1 (K, H1, Z), b1 (K, H1), W2 (K, H2, H1), b2 (K, H2), w3 (K, H2), b3 (K,), all but K padded with zeros."""
    one, two, three = networks.weights
    hidden_1, dim, hidden_2 = _padded(one.shape[1]), _padded(one.shape[2]), max(TILE, _padded(two.shape[1]))

    def pad(tensor: Tensor, *sizes: int) -> Tensor:
        ends = [size - have for size, have in zip(sizes, tensor.shape[1:], strict=True)]
        return F.pad(tensor, [n for end in reversed(ends) for n in (0, end)]).contiguous()

    b1, b2, b3 = (bias[:, 0].float() for bias in networks.biases)
    w1, w2 = pad(one.to(dtype), hidden_1, dim), pad(two.to(dtype), hidden_2, hidden_1)
    return w1, pad(b1, hidden_1), w2, pad(b2, hidden_2), pad(three[:, 0].float(), hidden_2), b3[:, 0].contiguous()


@triton.jit
def _value_and_slope(x, slope, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """An activation and its derivative."""
    if KIND == 0:
        gate = tl.sigmoid(x)
        value = x * gate
        derivative = gate + value * (1 - gate)
    elif KIND == 1:
        value = tl.where(x > 0, x, slope * x)
        derivative = tl.where(x > 0, 1.0, slope)
    else:
        below = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        value = x * below
        derivative = below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return value, derivative


@triton.jit
def _product(a, b, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """A product of matrices, summed in fp32; Triton's interpreter knows bf16 only as a way to round."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _chain_kernel(  # type: ignore[no-untyped-def]
    z_at, noise_at, seed, w1_at, b1_at, w2_at, b2_at, w3_at, b3_at, density_at, drift_at, diffusion_at,
    num_chains, dim, num_steps, first, last, drift_factor, diffusion_factor, slope,
    NUM_STAGES: tl.constexpr, DIM: tl.constexpr, HIDDEN_1: tl.constexpr, HIDDEN_2: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, KIND: tl.constexpr, DRAWN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Steps `first` to `last` of BLOCK chains; z is read and written, the traces are written per chain and step."""
    rounded: tl.constexpr = w1_at.dtype.element_ty  # what the factors of a product are rounded to
    chains = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    axes, units_1, units_2 = tl.arange(0, DIM), tl.arange(0, HIDDEN_1), tl.arange(0, TILE)
    alive = chains < num_chains
    inside = alive[:, None] & (axes[None, :] < dim)
    places = chains[:, None] * dim + axes[None, :]
    z = tl.load(z_at + places, mask=inside, other=0.0)
    for step in range(first, last):
        score = -z
        density = -0.5 * tl.sum(z * z, axis=1)
        for k in range(NUM_STAGES):
            w1 = tl.load(w1_at + k * HIDDEN_1 * DIM + units_1[:, None] * DIM + axes[None, :])  # H1, Z
            x1 = _product(z.to(rounded), tl.trans(w1), UPCAST)
            x1 += tl.load(b1_at + k * HIDDEN_1 + units_1)[None, :]
            h1, slope_1 = _value_and_slope(x1, slope, KIND)
            of_h1 = tl.zeros((BLOCK, HIDDEN_1), dtype=tl.float32)
            density += tl.load(b3_at + k)
            for tile in range(0, HIDDEN_2, TILE):
                rows = k * HIDDEN_2 + tile + units_2
                w2 = tl.load(w2_at + rows[:, None] * HIDDEN_1 + units_1[None, :])  # TILE, H1
                x2 = _product(h1.to(rounded), tl.trans(w2), UPCAST) + tl.load(b2_at + rows)[None, :]
                h2, slope_2 = _value_and_slope(x2, slope, KIND)
                w3 = tl.load(w3_at + rows)[None, :]
                density += tl.sum(h2 * w3, axis=1)
                of_h1 += _product((slope_2 * w3).to(rounded), w2, UPCAST)
            score += _product((of_h1 * slope_1).to(rounded), w1, UPCAST)
        if DRAWN:
            counters = (chains[:, None] * num_steps + step) * dim + axes[None, :]
            noise = tl.where(inside, tl.randn(seed, counters), 0.0)
        else:
            noise = tl.load(
                noise_at + (chains[:, None] * num_steps + step) * dim + axes[None, :], mask=inside, other=0.0
            )
        drift = drift_factor * score
        diffusion = diffusion_factor * noise
        z += drift + diffusion
        entry = chains * num_steps + step
        tl.store(density_at + entry, density, mask=alive)
        tl.store(drift_at + entry, tl.sqrt(tl.sum(drift * drift, axis=1)), mask=alive)
        tl.store(diffusion_at + entry, tl.sqrt(tl.sum(diffusion * diffusion, axis=1)), mask=alive)
    tl.store(z_at + places, z, mask=inside)


@triton.jit
def _noise_kernel(noise_at, seed, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Standard normal numbers from their own index."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(noise_at + index, tl.randn(seed, index), mask=index < size)
