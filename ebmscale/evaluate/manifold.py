"""Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) of generated points.

All four use k = 5. The neighbourhood of a point is the open ball around it that reaches to its k-th nearest neighbour
in its own set. Shapes: N real points, M generated points, F features.
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
    """The four measures. All but density are fractions in [0, 1].

    Attributes:
        precision: fraction of generated points that lie in the neighbourhood of some real point.
        recall: fraction of real points that lie in the neighbourhood of some generated point.
        density: mean number of neighbourhoods of real points in which a generated point lies, divided by k.
        coverage: fraction of real points with a generated point in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compare_manifolds(real: Tensor, fake: Tensor, world: World, neighbours: int = NEIGHBOURS) -> Manifold:
    """The four measures. Every rank has all points, and the ranks divide the rows among them (collective).

    Args:
        real: (N, F), the same on all ranks.
        fake: (M, F), the same on all ranks.
        world: ranks.
        neighbours: k.

    Raises:
        DataError: a set has too few points for k neighbours.
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
    """The squared distance (N,) of every point (N, F) to its k-th nearest neighbour."""
    radii = torch.zeros(len(points), dtype=torch.float64)
    for rows in _own_rows(len(points), world):
        distances = _squared_distances(points[rows], points)
        distances.scatter_(1, rows[:, None], torch.inf)  # excludes the point itself
        radii[rows] = distances.kthvalue(neighbours, dim=1).values
    return world.sum(radii)


def _own_rows(num: int, world: World) -> list[Tensor]:
    return list(torch.arange(world.rank, num, world.size).split(ROWS_AT_ONCE))


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances (N, M) between points (N, F) and (M, F), clamped at 0."""
    products = first @ second.T
    return (first.square().sum(1)[:, None] + second.square().sum(1) - 2 * products).clamp_min_(0)
