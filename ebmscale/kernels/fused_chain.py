"""Chains of the prior in one Triton kernel: all T Langevin steps over all K ratio networks, one launch.

A program keeps the weights of one network in shared memory, and its chains in registers, from the first step to the
last. A group of K programs works on the same chains, one program for each network. After every step these programs add
up their gradients through global memory, behind a barrier. So K networks take little longer than one while the GPU has
free multiprocessors. Products are in bf16 (or fp32); sums, activations and latents are in fp32. The noise is an
argument, or it is drawn in the kernel from a counter and needs no memory.

The kernel supports networks with two hidden layers of SiLU, LeakyReLU or GELU, and p_0 = N(0, I). Everything is padded
with zeros to the tiles of a tensor core; each of these activations maps zero to zero.

Shapes: N chains, Z latent, K stages, T steps, H hidden units.
"""

import functools
import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from ebmscale.density.langevin import ChainTrace, LangevinSettings
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.kernels.stacked import StackedMlp, stacked

BLOCK = 64
"""Chains of a program. With fewer chains, tiles are 32 or 64 bytes wide, and Triton 3.6 reads beyond shared memory."""
LEAST, LEAST_INTERPRETED = 128, 16
"""The least number of units to which layers are padded: on a GPU the smallest tiles that were tested."""
SILU, LEAKY_RELU, GELU = 0, 1, 2
KINDS: dict[type, int] = {nn.SiLU: SILU, nn.LeakyReLU: LEAKY_RELU, nn.GELU: GELU}


def unsupported_reason(prior: RatioSequence, z: Tensor) -> str | None:
    """Why the kernel cannot run chains of this prior from z (N, Z); None if it can."""
    networks = stacked(prior)
    known = networks is not None and len(networks.weights) == 3 and type(networks.activation) in KINDS
    if networks is None or not known or not networks.is_plain:
        return "the ratio networks do not have two hidden layers of a supported activation"
    if type(prior.base) is not StandardNormal:
        return "p_0 is not N(0, I)"
    if z.dtype != torch.float32:
        return f"the latents are {z.dtype}, not float32"
    if z.device.type == "cuda" and not _fits(networks, z.device, torch.bfloat16):
        return "the weights of a ratio network do not fit into the shared memory of this device"
    if z.device.type == "cuda" and prior.num_stages > _num_processors(z.device):
        return "there are more ratios than multiprocessors"
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
    """Ends (N, Z) and trace of chains, as those of `density.langevin.run_chain` with `evaluate_end=False`.

    Args:
        prior: one for which `unsupported_reason` is None.
        z: (N, Z) start of the chains.
        noise: (N, T, Z) standard normal, or a seed, from which the kernel draws it (see `counter_noise`).
        settings: of the chains.
        steps_a_launch: steps of one launch of the kernel.
        after_launch: called after every launch. An exception that it raises ends the chains.
        dtype: of the products.

    Raises:
        ValueError: the kernel does not support the prior.
    """
    networks = stacked(prior)
    if networks is None or (reason := unsupported_reason(prior, z)) is not None:
        raise ValueError(f"the fused chain cannot run: {reason if networks is not None else 'no known networks'}")
    weights = _padded_weights(prior, networks, dtype)
    ends = z.detach().contiguous().clone()
    shape = (len(z), settings.num_steps)
    log_density, drift, diffusion = (torch.empty(shape, device=z.device) for _ in range(3))
    launch = _launcher(ends, noise, settings, networks, weights, (log_density, drift, diffusion))
    for first in range(0, settings.num_steps, steps_a_launch):
        launch(first, min(first + steps_a_launch, settings.num_steps))
        after_launch()
    constant = 0.5 * prior.base.dim * math.log(2 * math.pi)
    return ends, ChainTrace(log_density.mean(0) - constant, drift.mean(0), diffusion.mean(0))


def counter_noise(seed: int, num_chains: int, num_steps: int, dim: int, device: torch.device | str) -> Tensor:
    """The noise (N, T, Z) that `run` draws in the kernel from this seed."""
    noise = torch.empty(num_chains, num_steps, dim, device=device)
    block = 256
    _noise_kernel[(triton.cdiv(noise.numel(), block),)](noise, seed, noise.numel(), BLOCK=block)
    return noise


def _launcher(
    z: Tensor,
    noise: Tensor | int,
    settings: LangevinSettings,
    networks: StackedMlp,
    weights: tuple[Tensor, ...],
    traces: tuple[Tensor, Tensor, Tensor],
) -> Callable[[int, int], None]:
    """A function of (first, last) that runs the steps first, ..., last - 1 of all chains, in one or more launches."""
    num_stages, hidden_1, dim = weights[0].shape
    seed, source = (noise, z) if isinstance(noise, int) else (0, noise.to(torch.float32).contiguous())
    activation = networks.activation
    assert activation is not None
    kind = KINDS[type(activation)]
    slope = activation.negative_slope if isinstance(activation, nn.LeakyReLU) else 0.0
    interpreted = _is_interpreted()  # it runs one program after another, so a barrier would never open
    members, block = (1, LEAST_INTERPRETED) if interpreted else (num_stages, BLOCK)
    num_groups = triton.cdiv(len(z), block)
    if members > 1:  # programs that wait for one another must run at the same time
        num_groups = min(num_groups, _num_processors(z.device) // members)
    scores = z.new_empty(2 * num_groups * members * block * dim if members > 1 else 0)
    values = z.new_empty(2 * num_groups * members * block if members > 1 else 0)
    options = {"num_warps": 8} if members == 1 else {"num_warps": 8, "launch_cooperative_grid": True}

    def launch(first: int, last: int) -> None:
        for first_chain in range(0, len(z), num_groups * block):
            counters = torch.zeros(num_groups, dtype=torch.int32, device=z.device)
            _chain_kernel[(num_groups * members,)](
                z, source, seed, *weights, *traces, scores, values, counters,
                first_chain, len(z), z.shape[1], settings.num_steps, first, last,
                0.5 * settings.step_size**2 / settings.temperature, settings.step_size * settings.noise_scale, slope,
                NUM_STAGES=num_stages, DIM=dim, HIDDEN_1=hidden_1, HIDDEN_2=weights[2].shape[1], BLOCK=block, KIND=kind,
                DRAWN=isinstance(noise, int), UPCAST=interpreted, MEMBERS=members, **options,
            )  # fmt: skip

    return launch


def _fits(networks: StackedMlp, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the activations of a program's chains fit into shared memory beside a network's weights."""
    one, two = networks.weights[0], networks.weights[1]
    dim, hidden_1, hidden_2 = (_padded(size) for size in (one.shape[2], one.shape[1], two.shape[1]))
    index = torch.cuda.current_device() if device.index is None else device.index
    room = _shared_bytes(index) // dtype.itemsize - hidden_1 * (dim + hidden_2)
    return room >= BLOCK * max(dim, hidden_1, hidden_2)


@functools.lru_cache
def _shared_bytes(index: int) -> int:
    """Shared memory of a program in bytes. It is cached because the query takes milliseconds."""
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


def _num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _is_interpreted() -> bool:
    """Whether Triton interprets the kernel, on a CPU."""
    return not isinstance(_chain_kernel, triton.JITFunction)


def _padded(size: int) -> int:
    return max(LEAST_INTERPRETED if _is_interpreted() else LEAST, triton.next_power_of_2(size))


_kept: WeakKeyDictionary[RatioSequence, dict[torch.dtype, tuple[Tensor, ...]]] = WeakKeyDictionary()


def _padded_weights(prior: RatioSequence, networks: StackedMlp, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """W1 (K, H1, Z), b1 (K, H1), W2 (K, H2, H1), b2 (K, H2), w3 (K, H2), b3 (K,), all but K padded with zeros."""
    kept = _kept.setdefault(prior, {})
    if dtype in kept:
        return kept[dtype]
    one, two, three = networks.weights
    hidden_1, dim, hidden_2 = _padded(one.shape[1]), _padded(one.shape[2]), _padded(two.shape[1])

    def pad(tensor: Tensor, *sizes: int) -> Tensor:
        ends = [size - have for size, have in zip(sizes, tensor.shape[1:], strict=True)]
        return F.pad(tensor, [n for end in reversed(ends) for n in (0, end)]).contiguous()

    b1, b2, b3 = (bias[:, 0].float() for bias in networks.biases)
    w1, w2 = pad(one.to(dtype), hidden_1, dim), pad(two.to(dtype), hidden_2, hidden_1)
    kept[dtype] = (
        *(w1, pad(b1, hidden_1), w2, pad(b2, hidden_2)),
        *(pad(three[:, 0].float(), hidden_2), b3[:, 0].contiguous()),
    )
    return kept[dtype]


@triton.jit
def _value_and_slope(x, slope, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Value and derivative of an activation."""
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
    """A product of matrices, summed in fp32. Triton's interpreter cannot multiply bf16, so it converts to fp32."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _load_network(k, w1_at, b1_at, w2_at, b2_at, w3_at, b3_at, DIM: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr):  # type: ignore[no-untyped-def]
    """The padded matrices and biases of ratio k."""
    axes, units_1, units_2 = tl.arange(0, DIM), tl.arange(0, H1), tl.arange(0, H2)
    w1 = tl.load(w1_at + k * H1 * DIM + units_1[:, None] * DIM + axes[None, :])
    w2 = tl.load(w2_at + k * H2 * H1 + units_2[:, None] * H1 + units_1[None, :])
    b1, b2 = tl.load(b1_at + k * H1 + units_1), tl.load(b2_at + k * H2 + units_2)
    return w1, b1, w2, b2, tl.load(w3_at + k * H2 + units_2), tl.load(b3_at + k)


@triton.jit
def _network(z, w1, b1, w2, b2, w3, b3, slope, KIND: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Value (BLOCK,) and gradient (DIM, BLOCK) of a ratio network at latents z (DIM, BLOCK).

    Chains are the last axis. So a tensor core reads the weights, the larger factor, from shared memory, and few chains
    fill its tiles.
    """
    rounded: tl.constexpr = w1.dtype  # what the factors of a product are rounded to
    h1, slope_1 = _value_and_slope(_product(w1, z.to(rounded), UPCAST) + b1[:, None], slope, KIND)
    h2, slope_2 = _value_and_slope(_product(w2, h1.to(rounded), UPCAST) + b2[:, None], slope, KIND)
    value = tl.sum(h2 * w3[:, None], axis=0) + b3
    of_h1 = _product(tl.trans(w2), (slope_2 * w3[:, None]).to(rounded), UPCAST)
    return value, _product(tl.trans(w1), (of_h1 * slope_1).to(rounded), UPCAST)


@triton.jit
def _wait_for_all(counter, wanted):  # type: ignore[no-untyped-def]
    """A barrier of the programs that share a counter. After it, each can read what the others wrote before it."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")
    while tl.atomic_add(counter, 0, sem="acquire") < wanted:
        pass
    tl.debug_barrier()


@triton.jit
def _chain_kernel(  # type: ignore[no-untyped-def]
    z_at, noise_at, seed, w1_at, b1_at, w2_at, b2_at, w3_at, b3_at, density_at, drift_at, diffusion_at,
    scores_at, values_at, counters_at,
    first_chain, num_chains, dim, num_steps, first, last, drift_factor, diffusion_factor, slope,
    NUM_STAGES: tl.constexpr, DIM: tl.constexpr, HIDDEN_1: tl.constexpr, HIDDEN_2: tl.constexpr, BLOCK: tl.constexpr,
    KIND: tl.constexpr, DRAWN: tl.constexpr, UPCAST: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """Steps `first` to `last` of BLOCK chains. It updates z in place and writes the traces per chain and step."""
    group, member = tl.program_id(0) // MEMBERS, tl.program_id(0) % MEMBERS
    chains = first_chain + group * BLOCK + tl.arange(0, BLOCK)
    axes = tl.arange(0, DIM)
    alive = chains < num_chains
    written = chains < tl.where(member == 0, num_chains, 0)
    inside = alive[None, :] & (axes[:, None] < dim)
    z = tl.load(z_at + chains[None, :] * dim + axes[:, None], mask=inside, other=0.0)
    tile = axes[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    if MEMBERS == NUM_STAGES:
        w1, b1, w2, b2, w3, b3 = _load_network(
            member, w1_at, b1_at, w2_at, b2_at, w3_at, b3_at, DIM, HIDDEN_1, HIDDEN_2
        )
    for step in range(first, last):
        if MEMBERS == NUM_STAGES:
            value, score = _network(z, w1, b1, w2, b2, w3, b3, slope, KIND, UPCAST)
            if MEMBERS > 1:
                side = (step % 2) * tl.num_programs(0)  # a program that is a step ahead writes to the other side
                place = side + group * MEMBERS + member
                tl.store(scores_at + place * DIM * BLOCK + tile, score)
                tl.store(values_at + place * BLOCK + tl.arange(0, BLOCK), value)
                _wait_for_all(counters_at + group, MEMBERS * (step - first + 1))
                value, score = tl.zeros_like(value), tl.zeros_like(score)
                for k in range(MEMBERS):
                    place = side + group * MEMBERS + k
                    score += tl.load(scores_at + place * DIM * BLOCK + tile, cache_modifier=".cg")
                    value += tl.load(values_at + place * BLOCK + tl.arange(0, BLOCK), cache_modifier=".cg")
        else:
            value, score = tl.zeros((BLOCK,), tl.float32), tl.zeros((DIM, BLOCK), tl.float32)
            for k in range(NUM_STAGES):
                w1, b1, w2, b2, w3, b3 = _load_network(
                    k, w1_at, b1_at, w2_at, b2_at, w3_at, b3_at, DIM, HIDDEN_1, HIDDEN_2
                )
                of_one, gradient = _network(z, w1, b1, w2, b2, w3, b3, slope, KIND, UPCAST)
                value += of_one
                score += gradient
        density = value - 0.5 * tl.sum(z * z, axis=0)
        numbers = (chains[None, :] * num_steps + step) * dim + axes[:, None]
        if DRAWN:
            noise = tl.where(inside, tl.randn(seed, numbers), 0.0)
        else:
            noise = tl.load(noise_at + numbers, mask=inside, other=0.0)
        drift = drift_factor * (score - z)
        diffusion = diffusion_factor * noise
        z += drift + diffusion
        entry = chains * num_steps + step
        tl.store(density_at + entry, density, mask=written)
        tl.store(drift_at + entry, tl.sqrt(tl.sum(drift * drift, axis=0)), mask=written)
        tl.store(diffusion_at + entry, tl.sqrt(tl.sum(diffusion * diffusion, axis=0)), mask=written)
    tl.store(z_at + chains[None, :] * dim + axes[:, None], z, mask=written[None, :] & (axes[:, None] < dim))


@triton.jit
def _noise_kernel(noise_at, seed, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Standard normal numbers, each a function of the seed and its index."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(noise_at + index, tl.randn(seed, index), mask=index < size)
