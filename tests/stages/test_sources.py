"""Gains, normalisers and the choice of a supply, where all are known in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.model.sampler import log_density_of
from ebmscale.stages.draws import Draws
from ebmscale.stages.from_base import FromBase
from ebmscale.stages.from_samples import FromSamples
from ebmscale.stages.pools import Pool
from ebmscale.stages.settings import ParticleSettings
from ebmscale.stages.supplies import ExactDraws, WeightedDraws
from tests.stages.known import SLOPES, check_moments, draws_of, exact, linear, tilted

FEW = ParticleSettings(pool_size=4096, num_tune=4096, groups=4, group_size=1024, num_fresh=32768)


def log_z_on_a_grid(sequence: RatioSequence) -> float:
    """log Z of a prior in the plane."""
    side = torch.linspace(-8, 8, 801)
    values = log_density_of(sequence, torch.cartesian_prod(side, side))
    return float(values.logsumexp(0)) + 2 * math.log(float(side[1] - side[0]))


def taken(source: FromBase, num_stages: int) -> list[float]:
    """The gains of known ratios f_k that are 1 / 2 of what they should be; the log Z at the end is checked."""
    sequence, gains = tilted(0), []
    for stage in range(1, num_stages + 1):
        half = linear(0.5 * SLOPES[stage - 1])
        strength = source.tilt(half, draws_of(stage, 100_000))
        assert strength.power == pytest.approx(1, abs=0.05)
        gains.append(strength.gain)
        half.gain.fill_(gains[-1])
        sequence = sequence.append(half.state_dict(), strength.power)
        grown = source.accept(sequence)
        assert grown.log_z == pytest.approx(log_z_on_a_grid(sequence), abs=4.5 * grown.log_z_error)
        assert grown.by_error <= grown.log_z_error + 0.05
        assert grown.log_z_error < 0.05
    return gains


@pytest.mark.parametrize(("least", "kind"), [(0.02, WeightedDraws), (0.999, Pool)])
def test_gains_and_normalisers_from_a_base(least: float, kind: type) -> None:
    source = FromBase(tilted(0), replace(FEW, min_share=least), Draws(0), 30.0)
    assert isinstance(source.supply().supply, ExactDraws)
    assert taken(source, 2) == pytest.approx([2.0, 2.0], abs=0.25)
    chosen = source.supply()
    assert isinstance(chosen.supply, kind)
    assert "% of the base's draws count" in chosen.reason
    drawn = chosen.supply.draw(2048, 0)
    check_moments(drawn.z, drawn.weights, 2, inflated=3.0)
    tuning, judging = source.tuning(chosen.supply), source.judging(chosen.supply)
    assert not set(map(tuple, tuning.z.tolist())) & set(map(tuple, judging.z.tolist()))


@pytest.mark.parametrize(("least", "kind"), [(0.02, WeightedDraws), (0.999, Pool)])
@pytest.mark.parametrize("std", [0.85, 1.2])
def test_a_prior_of_the_wrong_width_is_raised_to_a_power(least: float, kind: type, std: float) -> None:
    """From N(0, I) to N(m, s^2 I) by the ratio m z alone: g = b = 1 / s^2, and log Z is known."""
    dim, mean = 3, torch.tensor([0.5, -0.3, 0.8])
    ratio = linear(mean)
    empty = RatioSequence(StandardNormal(dim), ratio)
    source = FromBase(empty, replace(FEW, min_share=least), Draws(0), 30.0)
    q = mean + std * torch.randn(100_000, dim, generator=torch.Generator().manual_seed(0))
    strength = source.tilt(ratio, q)
    assert strength.power == pytest.approx(std**-2, rel=0.1)
    assert strength.gain == pytest.approx(std**-2, rel=0.1)
    ratio.gain.fill_(strength.gain)
    sequence = empty.append(ratio.state_dict(), strength.power)
    grown, b = source.accept(sequence), strength.power
    exact_log_z = 0.5 * dim * ((1 - b) * math.log(2 * math.pi) - math.log(b))
    exact_log_z += strength.gain**2 * float(mean.square().sum()) / (2 * b)
    assert grown.log_z == pytest.approx(exact_log_z, abs=4.5 * grown.log_z_error)
    supply = source.supply().supply
    assert isinstance(supply, kind)
    drawn = supply.draw(2048, 0)
    weights = drawn.weights[:, None]
    assert torch.allclose((weights * drawn.z).mean(0), strength.gain / b * mean, atol=0.12)
    square = (weights * (drawn.z - strength.gain / b * mean).square()).mean()
    assert float(square) == pytest.approx(1 / b, rel=0.12)
    again = source.tilt(linear(torch.tensor([1.0, 0.0, 0.0])), q)  # nothing is left to correct
    assert again.power == pytest.approx(1, abs=0.1)


def test_a_power_that_would_be_too_large_is_left_out() -> None:
    ratio = linear(torch.tensor([0.5, -0.3, 0.8]))
    source = FromBase(RatioSequence(StandardNormal(3), ratio), FEW, Draws(0), 30.0)
    q = torch.tensor([0.5, -0.3, 0.8]) + 0.4 * torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0))
    strength = source.tilt(ratio, q)
    assert strength.power == 1
    assert strength.gain == pytest.approx(1, rel=0.1)


def test_gains_and_normalisers_from_samples() -> None:
    draw = ExactDraws(tilted(0).base, Draws(1), "a").draw
    source = FromSamples((draw(9000, 0).z, draw(9000, 1).z, draw(9000, 2).z), 0.02, 30.0, Draws(0))
    half = linear(0.5 * SLOPES[0])
    gain, power = vars(source.tilt(half, draws_of(1, 100_000))).values()
    assert power == 1
    assert gain == pytest.approx(2, abs=0.2)
    half.gain.fill_(gain)
    grown = source.accept(tilted(0).append(half.state_dict()))
    assert grown.log_z == pytest.approx(exact(gain * 0.5 * SLOPES[0])[0], abs=4.5 * grown.log_z_error)
    assert source.reaches


def test_samples_that_do_not_reach_are_told() -> None:
    draw = ExactDraws(tilted(0).base, Draws(1), "a").draw
    source = FromSamples((draw(2000, 0).z, draw(2000, 1).z, draw(2000, 2).z), 0.02, 30.0, Draws(0))
    source.tilt(linear(torch.tensor([3.0, 0.0])), torch.tensor([[8.0, 0.0]]).expand(100, 2))
    assert not source.reaches
