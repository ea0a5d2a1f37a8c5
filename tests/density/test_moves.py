"""Kernels leave a density invariant: detailed balance up to rounding, reversibility, and moments; in float64."""

import math

import pytest
import torch
from torch import Tensor

from ebmscale.density.langevin import LangevinSettings, differentiate, start, transition
from ebmscale.density.moves import MoveSettings, adapted, jittered, move
from tests.density.draws import GeneratorNoise

NUM, DIM, STEP = 200, 3, 0.7


def log_density(z: Tensor) -> Tensor:
    """Two unequal modes: no symmetry that could hide an error."""
    one = -0.5 * (z - 1).square().sum(1)
    other = -2.0 * (z + 0.5).square().sum(1) + 0.3
    return torch.logaddexp(one, other)


TARGET = differentiate(log_density)


def draws(num: int = NUM, seed: int = 0) -> GeneratorNoise:
    return GeneratorNoise(torch.Generator().manual_seed(seed), num, torch.float64)


def one_move(z: Tensor, momentum: Tensor, settings: MoveSettings, scale: Tensor | None = None, uniform: float = 0.0):
    scale = torch.ones(1, DIM) if scale is None else scale
    steps, uniforms = (torch.full((len(z),), value, dtype=torch.float64) for value in (STEP, uniform))
    return move(start(TARGET, z), momentum, uniforms, TARGET, steps, scale, settings)


def test_mala_is_in_detailed_balance() -> None:
    """p(z) m(z'|z) a(z, z') = p(z') m(z|z') a(z', z) for every pair; m is the density of the Langevin proposal."""
    noise = draws()
    z, momentum = noise.normal(DIM), noise.normal(DIM)
    settings = MoveSettings("mala")
    scale = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64)
    moved, there = one_move(z, momentum, settings, scale)  # a uniform of 0 accepts every move that is possible
    length = STEP * scale
    back = (z - moved.z - 0.5 * length**2 * moved.score) / length
    returned, here = one_move(moved.z, back, settings, scale)
    torch.testing.assert_close(returned.z, z)
    log_there = log_density(z) - 0.5 * momentum.square().sum(1) + there.log()
    log_here = log_density(moved.z) - 0.5 * back.square().sum(1) + here.log()
    torch.testing.assert_close(log_there, log_here)
    assert 0.1 < float(there.mean()) < 0.95  # the test sees both kinds of moves


def test_rejected_particles_stay() -> None:
    noise = draws()
    z, momentum = noise.normal(DIM), 3 * noise.normal(DIM)
    moved, probability = one_move(z, momentum, MoveSettings("mala"), uniform=1 - 1e-12)
    rejected = probability < 1 - 1e-12
    assert rejected.any()
    assert not rejected.all()
    assert torch.equal(moved.z[rejected], z[rejected])
    assert not torch.equal(moved.z[~rejected], z[~rejected])
    torch.testing.assert_close(moved.log_density, log_density(moved.z))


def test_langevin_is_the_transition_of_the_chains() -> None:
    noise = draws()
    z, momentum = noise.normal(DIM), noise.normal(DIM)
    moved, probability = one_move(z, momentum, MoveSettings("langevin"))
    expected, _ = transition(start(TARGET, z), momentum, TARGET, LangevinSettings(1, STEP))
    torch.testing.assert_close(moved.z, expected.z)
    assert bool((probability == 1).all())


@pytest.mark.parametrize("kind", ["mala", "hmc"])
def test_exact_samples_stay_exact(kind: str) -> None:
    """N(0, diag(s^2)) has its moments after many moves, within 5 standard errors."""
    sd = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    target = differentiate(lambda z: -0.5 * (z / sd).square().sum(1))
    num = 20_000
    noise = draws(num, seed=3)
    state = start(target, sd * noise.normal(3))
    settings = MoveSettings(kind, num_leapfrog=3)
    steps = torch.full((num,), 0.9, dtype=torch.float64)
    first, rates = state.z.clone(), []
    for _ in range(10):
        state, rate = move(state, noise.normal(3), noise.uniform(), target, steps, sd[None], settings)
        rates.append(rate)
    assert 0.3 < float(torch.stack(rates).mean()) < 0.99
    assert float((state.z / sd).mean(0).abs().max()) < 5 / math.sqrt(num)
    assert float(((state.z / sd).var(0) - 1).abs().max()) < 5 * math.sqrt(2 / num)
    correlation = ((first / sd) * (state.z / sd)).mean(0)
    assert float(correlation.max()) < 0.2  # and they have moved


def test_a_move_out_of_the_support_is_rejected() -> None:
    target = differentiate(lambda z: torch.where(z.squeeze(1) > 0, -z.squeeze(1), torch.nan))
    state = start(target, torch.full((50, 1), 0.1, dtype=torch.float64))
    noise = draws(50)
    steps = torch.full((50,), 1.0, dtype=torch.float64)
    ones = torch.ones(1, 1, dtype=torch.float64)
    moved, _ = move(state, noise.normal(1), noise.uniform(), target, steps, ones, MoveSettings("mala"))
    assert bool((moved.z > 0).all())


def test_the_step_size_follows_the_acceptance() -> None:
    step, settings = torch.tensor([0.1, 0.1, 0.1]), MoveSettings("hmc", acceptance=0.8)
    smaller, same, larger = adapted(step, torch.tensor([0.5, 0.8, 1.0]), settings).tolist()
    assert smaller < 0.1 < larger
    assert same == pytest.approx(0.1)
    assert torch.equal(adapted(step, torch.tensor([0.5, 0.8, 1.0]), MoveSettings("langevin")), step)
    assert MoveSettings("mala").target_acceptance < MoveSettings("hmc").target_acceptance


@pytest.mark.parametrize("kind", ["langevin", "mala", "hmc"])
def test_only_trajectories_are_jittered(kind: str) -> None:
    steps, uniform = torch.full((3,), 0.4, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0]).double()
    expected = [0.2, 0.3, 0.4] if kind == "hmc" else [0.4] * 3
    assert jittered(steps, uniform, MoveSettings(kind)).tolist() == pytest.approx(expected)  # type: ignore[arg-type]


def test_jitter_moves_the_log_density_where_trajectories_end_at_their_mirror_image() -> None:
    """Half a period of a Gaussian of sd 1 is pi: without jitter z only changes its sign."""
    settings, noise = MoveSettings("hmc", num_leapfrog=16), draws(20_000)
    target = differentiate(lambda z: -0.5 * z.square().sum(1))
    state = start(target, noise.normal(1))
    steps = torch.full((20_000,), math.pi / 16, dtype=torch.float64)

    def correlation(of: Tensor) -> float:
        moved, _ = move(state, noise.normal(1), noise.uniform(), target, of, torch.ones(1, 1), settings)
        return float(torch.corrcoef(torch.stack([state.log_density, moved.log_density]))[0, 1])

    assert correlation(steps) > 0.99
    assert correlation(jittered(steps, noise.uniform(), settings)) < 0.7
