"""Evidence against scikit-learn, numpy and closed forms between normal densities."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ebmscale.density.evidence import auc, calibration_error, effective_sample_size, kl_lower_bound, measure, nce_error
from ebmscale.density.losses import chance_loss, nce

SHIFT = 0.8  # q = N(0.8, 1) against p = N(0, 1): log ratio 0.8 z - 0.32, KL 0.32 nats


def log_ratio(z: Tensor) -> Tensor:
    return SHIFT * z - SHIFT**2 / 2


def draws(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


levels = st.lists(st.integers(-3, 3), min_size=1, max_size=30).map(lambda values: torch.tensor(values).double())


@given(f_q=levels, f_p=levels)
def test_auc_is_scikit_learns_with_ties(f_q: Tensor, f_p: Tensor) -> None:
    labels = np.r_[np.ones(len(f_q)), np.zeros(len(f_p))]
    assert auc(f_q, f_p) == pytest.approx(roc_auc_score(labels, torch.cat([f_q, f_p]).numpy()), abs=1e-12)


def test_auc_between_normal_densities_is_the_closed_form() -> None:
    """P(z_q > z_p) = Phi(shift / sqrt 2); its standard error at 100,000 of each is below 0.001."""
    f_q, f_p = log_ratio(draws(100_000, seed=0) + SHIFT), log_ratio(draws(100_000, seed=1))
    assert auc(f_q, f_p) == pytest.approx(0.5 * (1 + math.erf(SHIFT / 2)), abs=0.004)


def test_auc_of_not_a_number_is_not_a_number() -> None:
    assert math.isnan(auc(torch.tensor([math.nan, 1.0]), torch.zeros(2)))


@given(f_q=levels, f_p=levels, num_bins=st.integers(1, 20))
def test_calibration_error_is_the_direct_sum_over_bins(f_q: Tensor, f_p: Tensor, num_bins: int) -> None:
    probability = 1 / (1 + np.exp(-np.r_[f_q.numpy(), f_p.numpy()]))
    label = np.r_[np.ones(len(f_q)), np.zeros(len(f_p))]
    weight = np.where(label == 1, 0.5 / len(f_q), 0.5 / len(f_p))
    error = 0.0
    for i in range(num_bins):
        inside = (probability >= i / num_bins) & (probability < (i + 1) / num_bins)
        if inside.any():
            mass = weight[inside]
            error += mass.sum() * abs(
                np.average(label[inside], weights=mass) - np.average(probability[inside], weights=mass)
            )
    assert calibration_error(f_q, f_p, num_bins) == pytest.approx(error, abs=1e-12)


def test_the_true_ratio_is_calibrated_and_a_doubled_one_is_not() -> None:
    f_q, f_p = log_ratio(draws(100_000, seed=0) + SHIFT), log_ratio(draws(100_000, seed=1))
    assert calibration_error(f_q, f_p) < 0.01
    assert calibration_error(3 * f_q, 3 * f_p) > 0.1


def test_kl_bound_of_the_true_ratio_has_the_closed_form_and_an_honest_standard_error() -> None:
    """Over 1,000 repetitions: mean within 4 standard errors of 0.32, and the spread is the reported standard error."""
    found = np.array(
        [
            kl_lower_bound(log_ratio(f_q + SHIFT), log_ratio(f_p))
            for f_q, f_p in zip(draws(1000, 2000, seed=0), draws(1000, 3000, seed=1), strict=True)
        ]
    )
    bounds, errors = found.T
    assert bounds.mean() == pytest.approx(SHIFT**2 / 2, abs=4 * bounds.std() / math.sqrt(1000))
    assert errors.mean() == pytest.approx(bounds.std(), rel=0.1)
    coverage = np.mean(np.abs(bounds - SHIFT**2 / 2) < 2 * errors)
    assert coverage == pytest.approx(0.954, abs=0.025)


def test_kl_bound_of_any_other_function_lies_below() -> None:
    z_q, z_p = draws(200_000, seed=0) + SHIFT, draws(200_000, seed=1)
    for slope in (0.0, 0.4, 1.2, -0.8):
        bound, _ = kl_lower_bound(slope * z_q, slope * z_p)
        assert bound == pytest.approx(slope * SHIFT - slope**2 / 2, abs=0.03)  # closed form of J for f = slope z
        assert bound < SHIFT**2 / 2


@given(shift=st.floats(-50, 50))
def test_kl_bound_does_not_see_the_normaliser(shift: float) -> None:
    f_q, f_p = draws(50, seed=0) + SHIFT, draws(60, seed=1)
    assert kl_lower_bound(f_q + shift, f_p + shift) == pytest.approx(kl_lower_bound(f_q, f_p), abs=1e-9)


def test_effective_sample_size_has_its_limits() -> None:
    assert effective_sample_size(torch.full((100,), -700.0).double()) == pytest.approx(100)
    one = torch.zeros(100).double()
    one[3] = 900.0  # e^900 overflows
    assert effective_sample_size(one) == pytest.approx(1)
    two = torch.full((100,), -math.inf).double()
    two[:2] = 0.0
    assert effective_sample_size(two) == pytest.approx(2)


def test_measure_puts_every_number_in_its_place() -> None:
    f_q, f_p = log_ratio(draws(5000, seed=0) + SHIFT), log_ratio(draws(5000, seed=1))
    found = measure(f_q.float(), f_p.float(), grad_norm=3.0)
    bound, error = kl_lower_bound(f_q, f_p)
    assert found.is_finite
    assert 1.0 < found.loss < chance_loss(1)
    assert found.auc == pytest.approx(auc(f_q, f_p), abs=1e-5)
    assert found.calibration_error == pytest.approx(calibration_error(f_q, f_p), abs=1e-3)
    assert (found.kl_bound, found.kl_bound_error) == pytest.approx((bound, error), rel=1e-4)
    assert found.ess == pytest.approx(math.exp(-(SHIFT**2)), rel=0.1)  # 1 / E_p[r^2] = e^(-shift^2)
    assert found.grad_norm == 3.0


def test_measure_of_a_broken_ratio_is_not_finite() -> None:
    assert not measure(torch.tensor([math.nan, 0.0]), torch.zeros(2)).is_finite


def test_the_error_of_the_loss_is_its_spread_over_repetitions() -> None:
    """f = log q - log p of N(1, 1) and N(0, 1): 4,000 losses of 50 + 80 samples, and the mean of their errors."""
    drawn = torch.Generator().manual_seed(0)
    losses, errors = [], []
    for _ in range(4000):
        f_q = torch.randn(50, generator=drawn, dtype=torch.float64) + 0.5
        f_p = torch.randn(80, generator=drawn, dtype=torch.float64) - 0.5
        losses.append(float(nce(f_q, f_p)))
        errors.append(nce_error(f_q, f_p))
    assert statistics.mean(errors) == pytest.approx(statistics.stdev(losses), rel=0.05)
