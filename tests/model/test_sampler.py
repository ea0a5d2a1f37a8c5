"""Samples of p_K against closed forms, by either method, and the check that they must pass."""

import pytest
import torch

from ebmscale.model import sampler
from ebmscale.model.sampler import agreement, draw_density
from tests.stages.known import check_moments, tilted


def test_resampling_while_enough_draws_count() -> None:
    found = draw_density(tilted(2), 3000)
    assert found.method == "importance resampling"
    assert found.unique > 0.9
    check_moments(found.z, torch.ones(3000), 2, inflated=1.3)


def test_particles_where_they_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "ENOUGH", 1e9)
    found = draw_density(tilted(2), 3000)
    assert found.method == "sequential Monte Carlo"
    assert found.unique > 0.9
    assert 0.3 < found.ancestors <= 1
    check_moments(found.z, torch.ones(3000), 2, inflated=1.5)


def test_samples_agree_with_others_of_their_density_and_not_with_the_base() -> None:
    one, other, base = (draw_density(tilted(k), 3000, seed).z for k, seed in ((2, 0), (2, 1), (0, 2)))
    assert agreement(tilted(2), one, other).holds
    assert not agreement(tilted(2), base, other).holds
