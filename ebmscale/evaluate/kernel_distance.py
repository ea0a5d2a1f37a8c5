"""The kernel distance of two sets of features: KID with those of Inception (Binkowski et al. 2018).

It is the unbiased estimate of the squared maximum mean discrepancy with the kernel k(x, y) = (x . y / F + 1)^3. If both
sets have the same distribution, it is near 0 and may be below 0. Its standard error is computed by the jackknife.
Shapes: N points of each kind, F features.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebmscale.errors import DataError
from ebmscale.world import World

ROWS_AT_ONCE = 500


class KernelDistance(NamedTuple):
    """The distance and its standard error."""

    value: float
    error: float


def kernel_distance(real: Tensor, fake: Tensor, world: World) -> KernelDistance:
    """The kernel distance. Every rank has all points, and the ranks divide the rows among them (collective).

    With h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), the distance is the mean of h over i != j.

    Args:
        real: (N, F), the same on all ranks.
        fake: (N, F), the same on all ranks.
        world: ranks.

    Raises:
        DataError: there are fewer than 3 points of each kind.
    """
    num = len(real)
    if num < 3 or len(fake) != num:
        raise DataError(f"A kernel distance needs at least 3 images on each side, and there are {min(num, len(fake))}.")
    real, fake = real.double(), fake.double()
    sums = torch.zeros(num, dtype=torch.float64)  # over j != i, of h(i, j)
    for rows in torch.arange(world.rank, num, world.size).split(ROWS_AT_ONCE):
        x, y = real[rows], fake[rows]
        within = _kernel(x, real) + _kernel(y, fake)
        across = _kernel(x, fake) + _kernel(y, real)
        itself = _diagonal(x, x) + _diagonal(y, y) - 2 * _diagonal(x, y)
        sums[rows] = (within - across).sum(1) - itself
    sums = world.sum(sums)
    value = sums.sum() / (num * (num - 1))
    without = (sums.sum() - 2 * sums) / ((num - 1) * (num - 2))  # the distance when the i-th of both sets is left out
    variance = (num - 1) / num * (without - without.mean()).square().sum()
    return KernelDistance(float(value), math.sqrt(float(variance)))


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    return ((first * second).sum(1) / first.shape[1] + 1) ** 3
