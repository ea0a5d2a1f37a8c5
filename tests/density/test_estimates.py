"""Effective sample sizes at their limits, bisection, and the errors of estimated normalisers; in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.density.estimates import (
    bennett_ratio,
    bridge_estimate,
    conditional_ess,
    importance_estimate,
    largest_step,
    matching_tilt,
    pooled,
    solved,
    tilted_mean,
)

EVEN = torch.full((1, 8), -math.log(8), dtype=torch.float64)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_the_conditional_effective_sample_size_at_its_limits() -> None:
    increment = torch.tensor([[0.0] * 7 + [1.0]], dtype=torch.float64)
    assert float(conditional_ess(increment, EVEN, one(0.0))) == pytest.approx(1)
    assert float(conditional_ess(torch.full((1, 8), 5.0).double(), EVEN, one(3.0))) == pytest.approx(1)
    assert float(conditional_ess(increment, EVEN, one(500.0))) == pytest.approx(1 / 8)


def test_it_is_the_usual_one_for_even_weights() -> None:
    """(sum w)^2 / (N sum w^2)."""
    increment = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = increment[0].exp()
    expected = float(weights.sum() ** 2 / (8 * weights.square().sum()))
    assert float(conditional_ess(increment, EVEN, one(1.0))) == pytest.approx(expected)


@given(edge=st.floats(1e-9, 0.999), room=st.floats(1.0, 50.0))
def test_bisection_finds_the_edge(edge: float, room: float) -> None:
    found = float(largest_step(lambda s: s <= edge, one(room)))
    assert found <= edge
    assert found == pytest.approx(edge, rel=1e-9)


def test_bisection_takes_all_the_room_there_is() -> None:
    assert float(largest_step(lambda s: s <= 2.0, one(0.7))) == pytest.approx(0.7)


def test_the_tilted_mean_of_two_points() -> None:
    """Values 0 and 1 under weights 1 and e^s: the logistic function. A point of weight zero may have the value -inf."""
    increment = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64)
    log_weights = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    assert float(tilted_mean(increment, log_weights, one(1.7))) == pytest.approx(1 / (1 + math.exp(-1.7)))


def test_pooling_independent_estimates() -> None:
    log_z, error = pooled(torch.tensor([1.0, 3.0], dtype=torch.float64).log())
    assert log_z == pytest.approx(math.log(2))
    assert error == pytest.approx(math.sqrt(2) / 2 / math.sqrt(2))
    assert math.isnan(pooled(torch.zeros(1))[1])
    assert pooled(torch.tensor([1000.0, 1000.0]))[0] == pytest.approx(1000)


def test_importance_estimates_of_a_log_normal() -> None:
    """E e^(s z) = e^(s^2 / 2); the delta method's error is sqrt((e^(s^2) - 1) / N)."""
    z = torch.randn(40, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_mean, error = importance_estimate(0.8 * z)
    assert log_mean.shape == error.shape == (40,)
    assert float(error.mean()) == pytest.approx(math.sqrt((math.exp(0.64) - 1) / 20_000), rel=0.05)
    pulls = (log_mean - 0.32) / error
    assert float(pulls.std()) == pytest.approx(1, abs=0.4)
    assert float(pulls.mean()) == pytest.approx(0, abs=4 / math.sqrt(40))


def test_the_bridge_between_two_gaussians() -> None:
    """N(0, 1) against c N(2, 1), known to differ by log c, where the two densities overlap little."""
    generator = torch.Generator().manual_seed(0)
    lower, upper = (torch.randn(4, 5000, generator=generator, dtype=torch.float64) + shift for shift in (0.0, 2.0))
    even = torch.full((4, 5000), 1 / 5000, dtype=torch.float64)
    differences = [2 * z - 2 + 1.3 for z in (lower, upper)]
    found = bennett_ratio(differences[0], even, differences[1], even, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((4,), 1.3).double(), rtol=0, atol=0.1)


def test_the_bridge_and_its_error_where_few_samples_carry_the_mean_of_the_weights() -> None:
    """Gamma(3) against the exponential: x^2 has the mean 2 under the exponential, and a heavy tail there."""
    generator = torch.Generator().manual_seed(0)
    pulls, bridged, plain = [], [], []
    for _ in range(60):
        lower, upper = (-torch.rand(2000, n, generator=generator).double().log().sum(1) for n in (1, 3))
        found, error = bridge_estimate(2 * lower.log(), 2 * upper.log()[:1500])
        pulls.append(float(found - math.log(2)) / float(error))
        bridged.append(float(found) - math.log(2))
        plain.append(float(importance_estimate(2 * lower.log())[0]) - math.log(2))
    errors = torch.tensor([bridged, plain]).square().mean(1).sqrt()
    assert torch.tensor(pulls).std() == pytest.approx(1, abs=0.3)
    assert float(torch.tensor(pulls).mean()) == pytest.approx(0, abs=4 / math.sqrt(60))
    assert errors[0] < 0.75 * errors[1]


def test_the_tilt_that_gives_means_of_a_gaussian() -> None:
    """Of N(0, 1), e^(a x + c x^2) makes N(0.3, 0.8^2): c = (1 - 1 / 0.64) / 2 and a = 0.3 / 0.64."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = torch.stack([x, x.square()], 1)
    means = torch.tensor([0.3, 0.64 + 0.09], dtype=torch.float64)
    found = matching_tilt(statistics, means, 0.1)
    assert found.tolist() == pytest.approx([0.3 / 0.64, 0.5 * (1 - 1 / 0.64)], abs=0.01)
    weights = torch.softmax(statistics @ found, 0)
    torch.testing.assert_close(weights @ statistics, means)


def test_a_tilt_stops_where_too_few_particles_would_count() -> None:
    """A statistic that is the same everywhere has no coefficient."""
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = torch.stack([torch.zeros_like(x), x], 1)
    nothing, found = matching_tilt(statistics, torch.tensor([0.0, 3.0], dtype=torch.float64), 0.3).tolist()
    weights = torch.softmax(found * x, 0)
    assert float(1 / (len(x) * weights.square().sum())) == pytest.approx(0.3, abs=0.01)
    assert 0.9 < found < 1.3  # e^(-a^2) of the draws count
    assert nothing == 0
    assert matching_tilt(statistics, statistics.mean(0), 0.3).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


@given(st.tuples(*[st.floats(-2, 2)] * 5))
def test_a_system_of_two_is_solved(numbers: tuple[float, ...]) -> None:
    root = torch.tensor(numbers[:4], dtype=torch.float64).view(2, 2)
    matrix = root @ root.T + 0.01 * torch.eye(2)
    right = torch.tensor([1.0, numbers[4]], dtype=torch.float64)
    torch.testing.assert_close(solved(matrix, right), torch.linalg.solve(matrix, right))
