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
from torch import Tensor, nn

from ebmscale.density.langevin import ChainTrace, LangevinSettings
from ebmscale.density.prior import RatioSequence
from ebmscale.kernels.fused_kernel import chain_kernel, noise_kernel
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
    if not prior.base.is_standard:
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
    noise_kernel[(triton.cdiv(noise.numel(), block),)](noise, seed, noise.numel(), BLOCK=block)
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
            chain_kernel[(num_groups * members,)](
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
    return not isinstance(chain_kernel, triton.JITFunction)


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
