"""Mutual information, the two-sample test and the out-of-distribution score where the answers are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ebmscale.errors import ConfigError, DataError
from ebmscale.ratios import OutOfDistribution, mutual_information, two_sample_test
from tests.ratios.test_fit import QUICK, normal

CORRELATION = 0.8


def test_the_mutual_information_of_a_gaussian_pair() -> None:
    """-log(1 - rho^2) / 2 nats a pair; three-dimensional x against y."""
    x = normal(6000, 3)
    y = CORRELATION * x + math.sqrt(1 - CORRELATION**2) * normal(6000, 3, seed=1)
    found = mutual_information(x, y, seed=2, settings=QUICK)
    assert found.nats == pytest.approx(-1.5 * math.log(1 - CORRELATION**2), abs=4 * found.error + 0.05)
    assert found.error < 0.1
    assert all(abs(side.kl) < 0.05 for side in found.marginals)


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(DataError, match="must be pairs"):
        mutual_information(normal(100, 1), normal(90, 1))


def test_two_samples_of_one_distribution_are_not_told_apart() -> None:
    quick = replace(QUICK, max_updates=100)
    values = [
        two_sample_test(
            normal(300, 2, seed=2 * s), normal(300, 2, seed=2 * s + 1), seed=s, num_permutations=99, settings=quick
        )
        for s in range(8)
    ]
    assert sum(one.p_value < 0.05 for one in values) <= 2
    assert min(one.p_value for one in values) >= 0.02


def test_two_different_samples_are_told_apart() -> None:
    found = two_sample_test(normal(600, 2), 1.5 * normal(600, 2, seed=1), num_permutations=99, settings=QUICK)
    assert found.p_value == 0.01
    assert found.statistic > 0.6
    assert found.lines()[1].startswith("p and q differ")
    apart = two_sample_test(normal(300, 1), 100 + normal(300, 1), num_permutations=99, settings=QUICK)
    assert apart == (1.0, 0.01)
    with pytest.raises(ConfigError, match="num_permutations"):
        two_sample_test(normal(300, 1), normal(300, 1), num_permutations=0)


def test_strange_points_score_high_and_samples_have_uniform_p_values() -> None:
    q = torch.cat([normal(3000, 2) * 0.3 - 2, normal(3000, 2, seed=1) * 0.3 + 2])
    judge = OutOfDistribution.fitted(q, seed=1, settings=replace(QUICK, hidden=(32, 32), quadratic=False))
    fresh = judge.judge(torch.cat([normal(500, 2, seed=3) * 0.3 - 2, normal(500, 2, seed=4) * 0.3 + 2]))
    assert float(fresh.p_value.mean()) == pytest.approx(0.5, abs=0.06)
    assert float((fresh.p_value < 0.05).double().mean()) < 0.09
    strange = judge.judge(torch.tensor([[0.0, 0.0], [2.0, -2.0], [8.0, 8.0]]))
    assert float(strange.score.min()) > float(fresh.score.median())
    assert bool((strange.p_value < 0.02).all())
    assert float(strange.p_value.min()) >= 1 / 602
    assert len(judge.score(np.zeros((0, 2)))) == 0
    for points, words in (
        ([[0.0, math.nan]], "not finite"),
        (3.0, r"shape \(\)"),
        (np.ones((4, 3)), r"shape \(4, 3\)"),
    ):
        with pytest.raises(DataError, match=words):
            judge.judge(points)


def test_a_two_sample_test_takes_bytes_for_pixels_beside_pixels() -> None:
    bytes_ = np.random.default_rng(0).integers(0, 256, (600, 2), dtype=np.uint8)
    assert two_sample_test(bytes_[:300], bytes_[300:] / 127.5 - 1, settings=QUICK).p_value > 0.01
    with pytest.raises(DataError, match="bytes and the other numbers from 0 to 1"):
        two_sample_test(bytes_[:300], bytes_[300:] / 255)
