"""Langevin chains against their exact law on a normal target, in float64."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from ebmscale.density.langevin import (
    ChainState,
    LangevinSettings,
    differentiate,
    run_chain,
    start,
    transition,
)


def standard_normal(z: Tensor) -> tuple[Tensor, Tensor]:
    """N(0, I) as a target."""
    return -0.5 * z.square().sum(dim=1), -z


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def variance_after(settings: LangevinSettings, start_variance: float) -> float:
    """The exact variance on N(0, 1): z <- a z + b noise, so v <- a^2 v + b^2."""
    a = 1 - settings.step_size**2 / 2 / settings.temperature
    variance = start_variance
    for _ in range(settings.num_steps):
        variance = a**2 * variance + (settings.step_size * settings.noise_scale) ** 2
    return variance


def empirical_variance(settings: LangevinSettings, num_chains: int = 200_000) -> float:
    state = start(standard_normal, 2 * noise(num_chains, 1, seed=1))
    end, _ = run_chain(standard_normal, state, noise(num_chains, settings.num_steps, 1), settings)
    return float(end.z.var())


@pytest.mark.parametrize("step_size", [0.1, 0.5, 1.0, 1.5])
def test_the_recursion_has_stationary_variance_4_over_4_minus_s_squared(step_size: float) -> None:
    settings = LangevinSettings(num_steps=4000, step_size=step_size)
    assert variance_after(settings, start_variance=4.0) == pytest.approx(4 / (4 - step_size**2), rel=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        LangevinSettings(1, 0.5),
        LangevinSettings(20, 1.0),
        LangevinSettings(20, 1.0, noise_scale=0.3),
        LangevinSettings(20, 1.0, temperature=2.5),
        LangevinSettings(20, 1.0, noise_scale=0.0),
    ],
)
def test_chains_have_the_exact_variance_of_the_recursion(settings: LangevinSettings) -> None:
    """Within 4 standard errors; the sample variance of N normal values has the relative error sqrt(2 / N)."""
    assert empirical_variance(settings) == pytest.approx(variance_after(settings, 4.0), rel=4 * (2 / 200_000) ** 0.5)


def test_temperature_samples_the_density_to_the_power_of_one_over_it() -> None:
    small = LangevinSettings(num_steps=20_000, step_size=0.05, temperature=2.5)
    assert variance_after(small, 1.0) == pytest.approx(2.5, rel=1e-3)


def test_noise_scale_is_a_hidden_temperature() -> None:
    """Noise scaled by c multiplies the variance of the chain by c^2."""
    settings = LangevinSettings(num_steps=2000, step_size=0.5, noise_scale=0.3)
    plain = dataclasses.replace(settings, noise_scale=1.0)
    assert variance_after(settings, 1.0) == pytest.approx(0.09 * variance_after(plain, 1.0), rel=1e-12)


def test_a_transition_is_the_published_formula_and_reports_its_two_parts() -> None:
    z, eta = noise(7, 3), noise(7, 3, seed=1)
    state, info = transition(
        start(standard_normal, z), eta, standard_normal, LangevinSettings(1, 0.4, noise_scale=0.5, temperature=2.0)
    )
    drift, diffusion = -(0.4**2 / 2 / 2.0) * z, 0.4 * 0.5 * eta
    torch.testing.assert_close(state.z, z + drift + diffusion)
    torch.testing.assert_close(state.log_density, standard_normal(state.z)[0])
    torch.testing.assert_close(state.score, -state.z)
    torch.testing.assert_close(info.drift, drift.norm(dim=1).mean())
    torch.testing.assert_close(info.diffusion, diffusion.norm(dim=1).mean())


def test_a_chain_is_its_transitions_one_after_another() -> None:
    settings = LangevinSettings(5, 0.4)
    eta = noise(7, 5, 3, seed=1)
    state: ChainState = start(standard_normal, noise(7, 3))
    means = []
    end, trace = run_chain(standard_normal, state, eta, settings)
    for step in range(5):
        state, _ = transition(state, eta[:, step], standard_normal, settings)
        means.append(state.log_density.mean())
    assert all(map(torch.equal, end, state))
    assert torch.equal(trace.log_density, torch.stack(means))


def test_noise_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(7, 5, 3\)"):
        run_chain(standard_normal, start(standard_normal, noise(7, 3)), noise(7, 4, 3), LangevinSettings(5, 0.4))


def test_no_steps_change_nothing() -> None:
    state = start(standard_normal, noise(7, 3))
    end, trace = run_chain(standard_normal, state, noise(7, 0, 3), LangevinSettings(0, 0.4))
    assert end is state
    assert trace.drift.shape == (0,)


def test_a_chain_leaves_no_gradient_on_parameters_and_no_graph_behind() -> None:
    network = nn.Linear(3, 1).double()
    target = differentiate(lambda z: network(z.square()).squeeze(1))
    with torch.no_grad():  # as callers run chains
        end, trace = run_chain(target, start(target, noise(7, 3)), noise(7, 2, 3), LangevinSettings(2, 0.1))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(tensor.requires_grad for tensor in (*end, *trace))


@pytest.mark.parametrize("num_steps", [1, 5])
def test_an_end_that_is_not_evaluated_costs_one_evaluation_less_and_is_the_same(num_steps: int) -> None:
    calls = []

    def target(z: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(z))
        return standard_normal(z)

    settings = LangevinSettings(num_steps, 0.4)
    first, eta = start(standard_normal, noise(7, 3)), noise(7, num_steps, 3, seed=1)
    whole, whole_trace = run_chain(target, first, eta, settings)
    assert len(calls) == num_steps
    end, trace = run_chain(target, first, eta, settings, evaluate_end=False)
    assert len(calls) == 2 * num_steps - 1
    assert torch.equal(end.z, whole.z)
    assert end.score.isnan().all()
    assert end.log_density.isnan().all()
    assert torch.equal(trace.drift, whole_trace.drift)
    before = torch.cat([first.log_density.mean()[None], whole_trace.log_density[:-1]])
    assert torch.equal(trace.log_density, before)
