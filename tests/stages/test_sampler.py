"""Samples of p_K against closed forms, by either method, and the check that they must pass."""

import pytest
import torch

from ebmscale.stages import sampler
from ebmscale.stages.draws import Draws
from ebmscale.stages.sampler import agreement, sample
from tests.stages.known import check_moments, tilted


def test_resampling_while_the_weights_bear_it() -> None:
    found = sample(tilted(2), 3000, Draws(0))
    assert found.method == "resampling"
    assert found.unique > 0.9
    check_moments(found.z, torch.ones(3000), 2, inflated=1.3)


def test_particles_where_they_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "ENOUGH", 1e9)
    found = sample(tilted(2), 3000, Draws(0))
    assert found.method == "sequential Monte Carlo"
    assert found.unique > 0.9
    assert 0.3 < found.ancestors <= 1
    check_moments(found.z, torch.ones(3000), 2, inflated=1.5)


def test_samples_agree_with_others_of_their_density_and_not_with_the_base() -> None:
    one, other, base = (sample(tilted(k), 3000, Draws(seed)).z for k, seed in ((2, 0), (2, 1), (0, 2)))
    assert agreement(tilted(2), one, other).holds
    assert not agreement(tilted(2), base, other).holds
