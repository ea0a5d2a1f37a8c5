"""Precision, recall, density and coverage against closed forms and scikit-learn's neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from ebmscale.errors import DataError
from ebmscale.evaluate import manifold
from ebmscale.evaluate.manifold import Manifold, compare_manifolds
from ebmscale.world import World

ALONE = World.alone()


def by_scikit_learn(real, fake, neighbours):
    def radii(points):
        return NearestNeighbors(n_neighbors=neighbours + 1).fit(points).kneighbors(points)[0][:, -1]

    distances = np.linalg.norm(real[:, None] - fake[None], axis=2)
    in_real = distances < radii(real)[:, None]
    in_fake = distances < radii(fake)[None]
    return Manifold(
        in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / neighbours, in_real.any(1).mean()
    )


def test_points_on_a_line():
    """Real at 0, 1, 2 with radii 1 (k = 1); generated at 0.5 and 10, radii 9.5."""
    real, fake = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.5], [10.0]])
    found = compare_manifolds(real, fake, ALONE, neighbours=1)
    assert found == Manifold(precision=1 / 2, recall=1.0, density=2 / 2, coverage=2 / 3)


def test_the_same_points_are_perfect_and_distant_ones_are_nothing():
    points = torch.from_numpy(np.random.default_rng(0).standard_normal((60, 4)))
    same = compare_manifolds(points, points.clone(), ALONE)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert same.density == pytest.approx(
        1.0, abs=0.15
    )  # counts itself, and the points for which it is nearer than the k-th neighbour
    assert compare_manifolds(points, points + 1e3, ALONE) == Manifold(0.0, 0.0, 0.0, 0.0)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(7, 40), st.integers(7, 40), st.integers(1, 6))
def test_agrees_with_scikit_learn(seed, num_real, num_fake, neighbours):
    source = np.random.default_rng(seed)
    real, fake = source.standard_normal((num_real, 3)), source.standard_normal((num_fake, 3)) * 1.5 + 0.3
    found = compare_manifolds(torch.from_numpy(real), torch.from_numpy(fake), ALONE, neighbours)
    assert found == pytest.approx(by_scikit_learn(real, fake, neighbours), abs=1e-12)


def test_rows_are_taken_a_few_at_a_time(monkeypatch):
    points = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 50, 3)))
    whole = compare_manifolds(points[0], points[1], ALONE)
    monkeypatch.setattr(manifold, "ROWS_AT_ONCE", 7)
    assert compare_manifolds(points[0], points[1], ALONE) == whole


def test_too_few_points_are_refused():
    with pytest.raises(DataError, match="more than 5 images on each side, and there are 5"):
        compare_manifolds(torch.zeros(9, 2), torch.zeros(5, 2), ALONE)
