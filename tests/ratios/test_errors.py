"""The errors of a fit and its warnings: of few samples, of a fit through a Gaussian, and of stages that add nothing."""

from dataclasses import replace

import pytest
import torch

from ebmscale.density.bases import Gaussian
from ebmscale.ratios import FitSettings, fit_ratio
from ebmscale.ratios.through_gaussian import moments_error
from tests.ratios.test_fit import QUICK, normal


@pytest.mark.parametrize(
    ("dim", "num", "shift", "scale"), [(1, 200, 1.0, 1.0), (2, 1000, 0.5, 0.3), (5, 1000, 0.5, 1.0)]
)
def test_the_error_of_the_moments_is_the_spread_over_sets_of_samples(
    dim: int, num: int, shift: float, scale: float
) -> None:
    q = shift + scale * normal(10_000, dim, seed=1).double()
    sets = [normal(num, dim, seed=100 + one).double() for one in range(200)]
    bases = [Gaussian.fitted(p) for p in sets]
    found = torch.stack([base.log_density(q).mean() for base in bases])
    said = sum(moments_error(base, p, q) for base, p in zip(bases, sets, strict=True)) / len(sets)
    assert said == pytest.approx(float(found.std()), rel=0.2)


def test_few_samples_of_p_are_part_of_the_error_of_a_fit_through_a_gaussian() -> None:
    few, many = (
        fit_ratio(normal(num, 1), 1 + normal(5000, 1, seed=1), base="gaussian", settings=QUICK) for num in (200, 20_000)
    )
    assert few.kl_error > 3 * many.kl_error / 2
    assert few.kl_error > 0.05  # the moments of 200 samples
    assert few.interval[0] <= 0.5 <= few.interval[1]


def test_a_warning_says_where_q_lies_beyond_all_samples_of_p() -> None:
    """KL(q || p) is infinite: half of q lies where p has no mass."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(1000, 1, generator=generator), 0.5 + torch.rand(1000, 1, generator=generator)
    fitted = fit_ratio(p, q, base="gaussian", settings=QUICK)
    assert fitted.extrapolated > 0.2
    assert "beyond all of p's" in str(fitted.warning)
    assert fit_ratio(p, p[::2].clone(), base="gaussian", settings=QUICK).extrapolated == 0


def test_a_stage_whose_bound_is_not_above_0_is_left_out_and_what_it_may_have_widens_the_interval() -> None:
    """q's samples are few, so the gain that suits one tenth of them is too large for another."""
    settings, left_out = replace(QUICK, hidden=(32,)), 0
    for seed in range(6):
        q = normal(60, 1, seed=seed)
        fitted = fit_ratio(Gaussian.fitted(q), q, seed=seed, settings=settings)
        assert all(row.nats > 0 for row in fitted.stages if row.gain > 0)
        last = fitted.stages[-1]
        if last.gain == 0:
            left_out += 1
            assert fitted.missing >= last.nats + 2 * last.nats_error
    assert left_out


def test_the_interval_of_few_held_out_samples_is_that_of_student_t() -> None:
    fitted = fit_ratio(normal(2000, 1), 1 + normal(2000, 1, seed=1), base="samples", settings=QUICK)
    assert fitted.num_held_out == 200
    few = replace(fitted, num_held_out=3)
    assert (fitted.kl - fitted.interval[0]) / fitted.kl_error == pytest.approx(2.01, abs=0.01)
    assert (few.kl - few.interval[0]) / few.kl_error == pytest.approx(4.53, abs=0.01)


def test_a_warning_says_that_an_interval_has_no_width() -> None:
    settings = FitSettings(hidden=(), quadratic=False, max_updates=1, min_updates=0, evidence_every=1, rate=1e-30)
    fitted = fit_ratio(normal(300, 2), normal(300, 2, seed=1), base="samples", settings=settings)
    assert fitted.kl_error == 0
    assert "has no width" in str(fitted.warning)
