"""Precision, recall, density and coverage: how far samples and data lie in each other's neighbourhoods.

Kynkaanniemi et al. 2019 and Naeem et al. 2020, with k = 5 for all. A neighbourhood is the open ball round a point that
reaches to its k-th nearest neighbour of its own kind. Shapes: N real points, M generated ones, F features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ebmscale.errors import DataError
from ebmscale.world import World

NEIGHBOURS = 5
MAX_POINTS = 10_000  # of each kind
ROWS_AT_ONCE = 500


class Manifold(NamedTuple):
    """Each as a share of one, but density, which may be above.

    Attributes:
        precision: generated points in some real point's neighbourhood.
        recall: real points in some generated point's neighbourhood.
        density: in how many real neighbourhoods a generated point lies, over k.
        coverage: real points with some generated point in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compare_manifolds(real: Tensor, fake: Tensor, world: World, neighbours: int = NEIGHBOURS) -> Manifold:
    """The four measures of points that lie on every rank, whose rows the ranks share out (collective).

    Args:
        real: (N, F), the same on all ranks.
        fake: (M, F), the same on all ranks.
        world: ranks.
        neighbours: k.

    Raises:
        DataError: a set has no k neighbours for a point.
    """
    least = min(len(real), len(fake))
    if least <= neighbours:
        raise DataError(f"Precision and recall need more than {neighbours} images on each side, and there are {least}.")
    real, fake = real.double(), fake.double()
    real_radii, fake_radii = _radii(real, neighbours, world), _radii(fake, neighbours, world)
    counts = torch.zeros(4, dtype=torch.float64)
    for rows in _own_rows(len(fake), world):
        inside = _squared_distances(fake[rows], real) < real_radii
        counts += torch.tensor([inside.any(1).sum(), 0, inside.sum(), 0])
    for rows in _own_rows(len(real), world):
        distances = _squared_distances(real[rows], fake)
        in_fake = (distances < fake_radii).any(1)
        counts += torch.tensor([0, in_fake.sum(), 0, (distances.amin(1) < real_radii[rows]).sum()])
    precise, recalled, within, covered = world.sum(counts).tolist()
    return Manifold(precise / len(fake), recalled / len(real), within / (neighbours * len(fake)), covered / len(real))


def _radii(points: Tensor, neighbours: int, world: World) -> Tensor:
    """(N,) the squared distance of every point to its k-th nearest other."""
    radii = torch.zeros(len(points), dtype=torch.float64)
    for rows in _own_rows(len(points), world):
        distances = _squared_distances(points[rows], points)
        distances.scatter_(1, rows[:, None], torch.inf)  # not to itself
        radii[rows] = distances.kthvalue(neighbours, dim=1).values
    return world.sum(radii)


def _own_rows(num: int, world: World) -> list[Tensor]:
    return list(torch.arange(world.rank, num, world.size).split(ROWS_AT_ONCE))


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) between points (N, F) and (M, F), never below 0."""
    products = first @ second.T
    return (first.square().sum(1)[:, None] + second.square().sum(1) - 2 * products).clamp_min_(0)
