"""The kernel distance against its definition, and its standard error against repetition."""

import math

import pytest
import torch

from ebmscale.errors import DataError
from ebmscale.evaluate.kernel_distance import kernel_distance
from ebmscale.world import World

ALONE = World.alone()


def points(num, dim, seed, shift=0.0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_definition(x, y):
    """The unbiased estimate as double sums over pairs."""

    def kernel(a, b):
        return float(a @ b / len(a) + 1) ** 3

    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    terms = [kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i]) for i, j in pairs]
    return sum(terms) / len(pairs)


def test_value_and_error_are_those_of_the_definition(monkeypatch):
    from ebmscale.evaluate import kernel_distance as module

    monkeypatch.setattr(module, "ROWS_AT_ONCE", 5)
    x, y = points(12, 3, 0), points(12, 3, 1, shift=0.5)
    found = kernel_distance(x, y, ALONE)
    assert found.value == pytest.approx(by_definition(x, y), rel=1e-12)
    rest = [[j for j in range(12) if j != i] for i in range(12)]
    without = torch.tensor([by_definition(x[rows], y[rows]) for rows in rest], dtype=torch.float64)
    jackknife = math.sqrt(11 / 12 * float((without - without.mean()).square().sum()))
    assert found.error == pytest.approx(jackknife, rel=1e-9)


def test_equal_distributions_are_zero_within_the_error_and_others_are_not():
    same = [kernel_distance(points(200, 4, 2 * s), points(200, 4, 2 * s + 1), ALONE) for s in range(40)]
    values = torch.tensor([one.value for one in same])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(40)
    other = kernel_distance(points(200, 4, 0), points(200, 4, 1, shift=1.0), ALONE)
    assert other.value > 4 * other.error


def test_the_error_is_the_spread_over_repetitions():
    found = [kernel_distance(points(200, 4, 2 * s), points(200, 4, 2 * s + 1, shift=0.7), ALONE) for s in range(60)]
    spread = float(torch.tensor([one.value for one in found]).std())
    mean_error = float(torch.tensor([one.error for one in found]).mean())
    assert mean_error == pytest.approx(spread, rel=0.35)


def test_too_few_points():
    with pytest.raises(DataError, match="at least 3 images on each side"):
        kernel_distance(points(2, 3, 0), points(2, 3, 1), ALONE)
