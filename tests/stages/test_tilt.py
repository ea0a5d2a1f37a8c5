"""How strong a frozen ratio is: against Gaussians, where the gain that equals both means is known."""

import pytest
import torch

from ebmscale.density.langevin import LangevinSettings
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.networks import RatioNet
from ebmscale.stages.tilt import MOST_GAIN, tilt, with_gain
from ebmscale.world import World

SLOPE = 1.5
SETTINGS = LangevinSettings(300, 0.4)


def climb(posterior_mean: float) -> tuple[list[float], torch.Tensor, RatioSequence]:
    """f(z) = SLOPE z_1 on p_0 = N(0, I): p_0 e^(g f) is N(g SLOPE e_1, I), so f has the mean g SLOPE^2 there."""
    network = RatioNet(2, ())
    weights = {"layers.0.weight": torch.tensor([[SLOPE, 0.0]]), "layers.0.bias": torch.zeros(1)}
    prior = RatioSequence(StandardNormal(2), network)
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(4_000, 2, generator=generator), torch.randn(4_000, 300, 2, generator=generator)
    gains, ends = tilt(prior, weights, posterior_mean, z, noise, SETTINGS, World.alone())
    return gains, ends, with_gain(prior, weights, sum(gains[-75:]) / 75)


@pytest.mark.parametrize("gain", [0.3, 0.6, 1.0])
def test_the_gain_makes_both_means_equal(gain: float) -> None:
    gains, ends, prior = climb(gain * SLOPE**2)
    assert sum(gains[-75:]) / 75 == pytest.approx(gain, abs=0.03)
    assert float(ends[:, 0].mean()) == pytest.approx(gain * SLOPE, abs=0.08)
    z = torch.randn(5, 2)
    torch.testing.assert_close(prior.log_ratios(z)[0], gain * SLOPE * z[:, 0], rtol=0.1, atol=0)


def test_a_ratio_that_is_lower_at_posteriors_than_at_the_prior_is_left_out() -> None:
    assert climb(-2.0)[0][-1] == 0.0


def test_the_gain_is_bounded() -> None:
    assert climb(100.0)[0][-1] == MOST_GAIN
