"""Systematic resampling is unbiased, and every count is the expected count rounded down or up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.density.resampling import resample_systematically


def draw_uniform(num: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 1000), uniform=st.floats(0, 1, exclude_max=True))
def test_counts_are_within_one_of_the_weights(seed: int, uniform: float) -> None:
    log_weights = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = resample_systematically(log_weights, torch.full((2,), uniform, dtype=torch.float64), 50)
    counts = torch.stack([torch.bincount(row, minlength=9) for row in drawn])
    assert (counts - 50 * torch.softmax(log_weights, 1)).abs().max() < 1 + 1e-9


def test_a_weight_of_zero_is_never_drawn() -> None:
    weights = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.0, 0.25, 0.75, 0.0]], dtype=torch.float64)
    drawn = resample_systematically(weights.log(), draw_uniform(2), 1000)
    assert not bool((weights.gather(1, drawn) == 0).any())


@pytest.mark.parametrize("num_draws", [1, 2])
def test_few_draws_are_unbiased(num_draws: int) -> None:
    weights = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    drawn = resample_systematically(weights.log().expand(100_000, 3), draw_uniform(100_000), num_draws)
    share = torch.bincount(drawn.flatten()) / drawn.numel()
    torch.testing.assert_close(share, weights, rtol=0, atol=0.007, check_dtype=False)


@given(seed=st.integers(0, 1000), constant=st.integers(-500, 500))
def test_the_constant_of_the_weights_does_not_matter(seed: int, constant: int) -> None:
    log_weights = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniform = draw_uniform(3, seed=seed)
    moved = resample_systematically(log_weights + constant, uniform, 7)
    assert torch.equal(resample_systematically(log_weights, uniform, 7), moved)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_stay_inside(uniform: float) -> None:
    drawn = resample_systematically(torch.tensor([[0.0, 0.0, -200.0]]), torch.tensor([uniform]), 5)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) <= 1


def test_resampled_points_follow_the_target() -> None:
    """p = N(0, 1), weights e^(z - 1/2): the draws have mean 1 and variance 1, within 5 standard errors."""
    z = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    drawn = z[resample_systematically(z[None] - 0.5, draw_uniform(1), 50_000)[0]]
    assert float(drawn.mean()) == pytest.approx(1, abs=5 / 50_000**0.5)
    assert float(drawn.var()) == pytest.approx(1, abs=5 * (2 / 50_000) ** 0.5)
