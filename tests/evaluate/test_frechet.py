"""The Frechet distance against closed forms, scipy and torchmetrics, to 1e-6."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance

from ebmscale.errors import DataError
from ebmscale.evaluate.frechet import Moments, frechet_distance


def moments_of(points, parts=1):
    moments = Moments(points.shape[1])
    for part in torch.as_tensor(points).tensor_split(parts):
        moments.add(part)
    return moments


def points_with(mean, covariance, num=200, seed=0):
    """Points (N, F) float64 whose empirical mean and unbiased covariance are exactly these."""
    raw = np.random.default_rng(seed).standard_normal((num, len(mean)))
    raw -= raw.mean(0)
    whitened = np.linalg.solve(np.linalg.cholesky(np.atleast_2d(np.cov(raw.T))), raw.T).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def rotation(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def spd(size, seed):
    root = np.random.default_rng(seed).standard_normal((size, size))
    return root @ root.T + 0.1 * np.eye(size)


def test_gaussians_in_one_dimension():
    first, second = moments_of(points_with([1.0], [[4.0]])), moments_of(points_with([-2.0], [[9.0]], seed=1))
    assert frechet_distance(first, second) == pytest.approx(3.0**2 + (2 - 3) ** 2, abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_gaussians_whose_covariances_commute(seed, size):
    source, turn = np.random.default_rng(seed), rotation(size, seed)
    scales, means = source.uniform(0.1, 5, (2, size)), source.normal(size=(2, size)) * 3
    first, second = (
        moments_of(points_with(mean, turn @ np.diag(scale**2) @ turn.T, seed=seed + side))
        for side, (mean, scale) in enumerate(zip(means, scales, strict=True))
    )
    expected = np.square(means[0] - means[1]).sum() + np.square(scales[0] - scales[1]).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [2, 16, 64])
def test_general_gaussians_agree_with_scipy(size):
    first, second = spd(size, 1), spd(size, 2)
    expected = np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    mean = np.zeros(size)
    found = frechet_distance(moments_of(points_with(mean, first)), moments_of(points_with(mean, second, seed=3)))
    assert found == pytest.approx(expected, abs=1e-6)


def test_agrees_with_torchmetrics_on_features():
    points = [points_with(np.full(8, 3.0 * side), spd(8, side), num=500, seed=side) for side in (1, 2)]
    oracle = FrechetInceptionDistance(feature=torch.nn.Identity(), input_img_size=(8,)).set_dtype(torch.float64)
    for side, real in zip(points, (True, False), strict=True):
        oracle.update(torch.from_numpy(side), real=real)
    assert frechet_distance(*map(moments_of, points)) == pytest.approx(float(oracle.compute()), abs=1e-6)


def test_singular_covariances_are_exact():
    """A feature that is constant on both sides, such as a dead unit, and two equal features."""
    points = [points_with([0.0, side], np.diag([1.0, 4.0]), seed=side) for side in (0, 1)]
    wide = [np.column_stack([side, np.full(len(side), 7.0), side[:, 0]]) for side in points]
    assert frechet_distance(*map(moments_of, wide)) == pytest.approx(1.0, abs=1e-6)
    assert frechet_distance(moments_of(wide[0]), moments_of(wide[0])) == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_parts_make_the_moments_of_the_whole(seed, parts):
    """Features far from zero, where a sum of squares would lose all digits."""
    points = np.random.default_rng(seed).standard_normal((60, 3)) + 1e7
    moments = moments_of(points, parts)
    assert moments.count == 60
    np.testing.assert_allclose(moments.mean, points.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(points.T), atol=1e-6)
    first, rest = moments_of(points[:25]), moments_of(points[25:])
    rest.merge(Moments.of(**first.tensors()))
    rest.merge(Moments(3))
    assert rest.count == 60
    np.testing.assert_allclose(rest.covariance, np.cov(points.T), atol=1e-6)


def test_one_image_has_no_covariance():
    with pytest.raises(DataError, match="at least 2 images on each side, and there are 1"):
        frechet_distance(moments_of(np.zeros((1, 2))), moments_of(np.zeros((5, 2))))
