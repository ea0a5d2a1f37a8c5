"""The fixed bridge between normal densities, where all quantities have a closed form, in float64."""

import pytest
import torch

from ebmscale.density.bridge import telescope_loss, waymarks
from ebmscale.density.losses import chance_loss, nce

MEAN, SD = 1.5, 0.5


def normal(num: int, seed: int) -> torch.Tensor:
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("num_ratios", [1, 2, 5])
def test_the_ends_are_the_two_sides_and_weights_keep_a_standard_normal_standard(num_ratios: int) -> None:
    z_0, z_q = normal(3, 0), normal(3, 1)
    marks = waymarks(z_0, z_q, num_ratios)
    assert marks.shape == (num_ratios + 1, 3, 2)
    assert torch.equal(marks[0], z_0)
    torch.testing.assert_close(marks[-1], z_q)
    weights = waymarks(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double(), num_ratios)
    torch.testing.assert_close(weights.square().sum(2), torch.ones(num_ratios + 1, 1).double())


def test_waymarks_of_normal_sides_have_the_moments_of_the_bridge() -> None:
    """z_m has mean a_m MEAN and variance 1 - a_m^2 + a_m^2 SD^2; both sides standard: variance 1 for every m."""
    z_0, noise = normal(50_000, 0), normal(50_000, 1)
    a = torch.linspace(0, 1, 5, dtype=torch.float64)
    marks, standard = waymarks(z_0, MEAN + SD * noise, 4), waymarks(z_0, noise, 4)
    for m in range(5):
        assert marks[m].mean() == pytest.approx(float(a[m] * MEAN), abs=0.02)
        assert marks[m].var() == pytest.approx(float(1 - a[m] ** 2 * (1 - SD**2)), rel=0.03)
        assert standard[m].var() == pytest.approx(1.0, rel=0.03)


def test_the_loss_is_the_mean_over_ratios_and_that_of_chance_where_they_say_nothing() -> None:
    zeros = torch.zeros(3, 7, dtype=torch.float64)
    assert float(telescope_loss(zeros, zeros)) == pytest.approx(chance_loss(1), abs=1e-12)
    upper, lower = normal(21, 2)[:, 0].view(3, 7), normal(21, 3)[:, 0].view(3, 7)
    by_hand = sum(nce(upper[k], lower[k]) for k in range(3)) / 3
    assert float(telescope_loss(upper, lower)) == pytest.approx(float(by_hand), abs=1e-12)


def test_the_ratios_of_the_bridge_are_where_the_loss_is_least() -> None:
    """Along a Gaussian bridge the exact log ratios have a lower loss than scaled or shifted ones."""
    marks = waymarks(normal(20_000, 4)[:, :1], MEAN + SD * normal(20_000, 5)[:, :1], 2)
    a = torch.linspace(0, 1, 3, dtype=torch.float64)
    sides = [torch.distributions.Normal(a[m] * MEAN, (1 - a[m] ** 2 * (1 - SD**2)).sqrt()) for m in range(3)]

    def loss(scale: float, shift: float) -> float:
        def ratio(k: int, z: torch.Tensor) -> torch.Tensor:
            return scale * (sides[k + 1].log_prob(z) - sides[k].log_prob(z))[:, 0] + shift

        upper = torch.stack([ratio(k, marks[k + 1]) for k in range(2)])
        return float(telescope_loss(upper, torch.stack([ratio(k, marks[k]) for k in range(2)])))

    others = [loss(*change) for change in ((0.8, 0), (1.2, 0), (1, 0.2), (1, -0.2), (-1, 0))]
    assert loss(1, 0) < min(others)
    assert loss(1, 0) < chance_loss(1)
