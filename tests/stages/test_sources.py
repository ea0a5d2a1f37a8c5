"""Gains, normalisers and the choice of a supply, where all are known in closed form."""

from dataclasses import replace

import pytest
import torch

from ebmscale.stages.draws import Draws
from ebmscale.stages.from_base import FromBase
from ebmscale.stages.from_samples import FromSamples
from ebmscale.stages.pools import Pool
from ebmscale.stages.settings import ParticleSettings
from ebmscale.stages.supplies import ExactDraws, WeightedDraws
from tests.stages.known import SLOPES, check_moments, exact, linear, prior_of, tilted

FEW = ParticleSettings(pool_size=4096, num_tune=4096, groups=4, group_size=1024, num_fresh=32768)


def taken(source: FromBase, num_stages: int) -> list[float]:
    """The gains of known ratios f_k that are 1 / 2 of what they should be; the log Z at the end is checked."""
    sequence, gains = tilted(0), []
    for stage in range(1, num_stages + 1):
        half = linear(0.5 * SLOPES[stage - 1])
        _, mean, _ = prior_of(stage)
        gains.append(source.tilt(half, float(half.inner.linear.weight[0].double() @ mean)))  # type: ignore[union-attr]
        half.gain.fill_(gains[-1])
        sequence = sequence.append(half.state_dict())
        grown = source.accept(sequence)
        slope = sum(gain * 0.5 * one for gain, one in zip(gains, SLOPES, strict=False))
        assert isinstance(slope, torch.Tensor)
        assert grown.log_z == pytest.approx(exact(slope)[0], abs=4.5 * grown.log_z_error)
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


def test_gains_and_normalisers_from_samples() -> None:
    draw = ExactDraws(tilted(0).base, Draws(1), "a").draw
    source = FromSamples((draw(9000, 0).z, draw(9000, 1).z, draw(9000, 2).z), 0.02, 30.0, Draws(0))
    half = linear(0.5 * SLOPES[0])
    _, mean, _ = prior_of(1)
    gain = source.tilt(half, float(0.5 * SLOPES[0].double() @ mean))
    assert gain == pytest.approx(2, abs=0.2)
    half.gain.fill_(gain)
    grown = source.accept(tilted(0).append(half.state_dict()))
    assert grown.log_z == pytest.approx(exact(gain * 0.5 * SLOPES[0])[0], abs=4.5 * grown.log_z_error)
    assert source.reaches


def test_samples_that_do_not_reach_are_told() -> None:
    draw = ExactDraws(tilted(0).base, Draws(1), "a").draw
    source = FromSamples((draw(2000, 0).z, draw(2000, 1).z, draw(2000, 2).z), 0.02, 30.0, Draws(0))
    source.tilt(linear(torch.tensor([3.0, 0.0])), 24.0)
    assert not source.reaches
