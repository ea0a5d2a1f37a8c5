"""The Triton kernels of `fused_chain`: the chains of the prior, and their noise. See there for what they compute.

Shapes: N chains, Z latent, K stages, T steps, H hidden units.
"""

import triton
import triton.language as tl


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
def chain_kernel(  # type: ignore[no-untyped-def]
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
def noise_kernel(noise_at, seed, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Standard normal numbers, each a function of the seed and its index."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(noise_at + index, tl.randn(seed, index), mask=index < size)
