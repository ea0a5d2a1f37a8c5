"""Expectation maximisation: the mixture of Gaussians with full covariances that fits samples.

Moments are summed in float64, over blocks of samples, so that memory does not grow with their number. Every component
owns one sample more, of N(0, I), and off its diagonal its covariance is shrunk as if Z samples of independent
coordinates had been added. So no covariance becomes singular.

Shapes: N samples, Z coordinates, C components, S = 1 + Z + Z (Z + 1) / 2 statistics of a sample.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

EM_STEPS = 20
CENTRE_TRIES, CENTRE_STEPS = 4, 5
"""Sets of first centres of which the best is taken, and the steps of k-means that each takes."""
EM_BLOCK = 2**18
"""Numbers in the products of a block of samples: few enough that they stay in a processor's cache."""

Shares = Callable[[Tensor], Tensor]
"""Maps the statistics of points (S, N) to how likely each is to be of each component (C, N)."""


class Components(NamedTuple):
    """The parameters of a mixture.

    Attributes:
        weights: (C,), which add up to 1.
        means: (C, Z).
        choleskys: (C, Z, Z) lower triangles of the covariances.
    """

    weights: Tensor
    means: Tensor
    choleskys: Tensor

    def whitening(self) -> Tensor:
        """W (C, Z, Z) such that (z - mean) W has the covariance I under its component."""
        one = torch.eye(self.means.shape[1], dtype=torch.float64, device=self.choleskys.device)
        roots = self.choleskys.double()
        return torch.linalg.solve_triangular(roots, one.expand(roots.shape), upper=False).mT.to(self.choleskys.dtype)

    def log_constants(self) -> Tensor:
        """log of weight times density at the mean of every component, (C,)."""
        volumes = self.choleskys.diagonal(dim1=1, dim2=2).double().log().sum(1)
        constants = self.weights.double().log() - volumes - 0.5 * self.means.shape[1] * math.log(2 * math.pi)
        return constants.to(self.weights.dtype)


def fit_components(
    samples: Tensor,
    num_components: int,
    generator: torch.Generator | None = None,
    num_steps: int = EM_STEPS,
    axes: Tensor | None = None,
) -> Components:
    """Components after expectation maximisation from centres of k-means.

    Args:
        samples: (N, Z), of about unit scale.
        num_components: C.
        generator: of the centres.
        num_steps: of expectation maximisation.
        axes: (Z, Z); k-means measures distances between samples @ axes. Clusters that lie along one of many axes are
            far apart in the coordinates before whitening, and near each other after it.
    """
    seen = samples if axes is None else samples @ axes.to(samples)
    tries = [_centres(seen, num_components, generator) for _ in range(CENTRE_TRIES if num_components > 1 else 1)]
    centres = min(tries, key=lambda found: float(torch.cdist(seen, found).amin(1).square().sum()))
    components = _maximised(samples, partial(_nearest, centres, axes))
    for _ in range(num_steps):
        components = improve_components(components, samples)
    return components


def improve_components(components: Components, samples: Tensor) -> Components:
    """The components after one step of expectation maximisation on samples (N, Z)."""
    return _maximised(samples, shares_of(components))


def shares_of(components: Components) -> Shares:
    """The shares of the components in float64.

    The log density of a Gaussian is linear in the statistics of a point, so the shares are one product of matrices.
    """
    dim = components.means.shape[1]
    whiten = components.whitening().double()
    precisions = whiten @ whiten.mT
    linear = (precisions @ components.means.double()[:, :, None])[:, :, 0]
    constant = components.log_constants().double() - 0.5 * (linear * components.means).sum(1)
    rows, columns = torch.triu_indices(dim, dim)
    quadratic = precisions[:, rows, columns] * torch.where(rows == columns, -0.5, -1.0)
    natural = torch.cat([constant[:, None], linear, quadratic], dim=1)
    return lambda statistics: (natural @ statistics).softmax(0)


def statistics_of(z: Tensor) -> Tensor:
    """1, z_i, and z_i z_j for i <= j, of points (N, Z): (S, N)."""
    dim = z.shape[1]
    rows, columns = torch.triu_indices(dim, dim)
    found = z.new_empty(1 + dim + len(rows), len(z))
    found[0] = 1
    found[1 : dim + 1] = z.T
    torch.mul(found[1 : dim + 1][rows], found[1 : dim + 1][columns], out=found[dim + 1 :])
    return found


def _maximised(samples: Tensor, shares: Shares) -> Components:
    """The components under which samples (N, Z) are likeliest, if they own these shares of them."""
    dim = samples.shape[1]
    moments = None
    for block in samples.split(max(2 * EM_BLOCK // (dim * (dim + 1)), 1)):
        statistics = statistics_of(block.double())
        owned = shares(statistics)
        moments = owned.new_zeros(len(owned), len(statistics)) if moments is None else moments
        moments.addmm_(owned, statistics.T)
    assert moments is not None
    counts, sums, products = moments.split([1, dim, moments.shape[1] - 1 - dim], dim=1)
    counts = (counts + 1)[:, :, None]
    means = sums / counts[:, 0]
    rows, columns = torch.triu_indices(dim, dim)
    squares = products.new_zeros(len(means), dim, dim)
    squares[:, rows, columns] = squares[:, columns, rows] = products
    one = torch.eye(dim).to(squares)
    covariances = (one + squares - (counts + 1) * means[:, :, None] * means[:, None]) / counts
    covariances = torch.where(one.bool(), covariances, counts / (counts + dim) * covariances)
    weights = (counts / counts.sum()).flatten()
    return Components(*(found.to(samples) for found in (weights, means, torch.linalg.cholesky(covariances))))


def _nearest(centres: Tensor, axes: Tensor | None, statistics: Tensor) -> Tensor:
    """1 where a centre (C, Z) is the nearest one of a point with these statistics (S, N), else 0: (C, N)."""
    z = statistics[1 : centres.shape[1] + 1].T
    seen = z if axes is None else z @ axes.to(z)
    return one_hot(torch.cdist(seen, centres.to(z)).argmin(1), len(centres)).T.to(z)


def _centres(samples: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """`num` centres of samples (N, Z): k-means from samples that are drawn by k-means++, (C, Z)."""
    centres = _spread_centres(samples, num, generator)
    for _ in range(CENTRE_STEPS):
        nearest = torch.cdist(samples, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, samples)
        counts = nearest.bincount(minlength=num)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def _spread_centres(samples: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """`num` of the samples, each drawn in proportion to the squared distance from those before it (k-means++)."""
    first = torch.randint(len(samples), (1,), generator=generator)
    centres = [samples[first[0]]]
    distance = (samples - centres[0]).square().sum(1)
    for _ in range(num - 1):
        centres.append(samples[torch.multinomial(distance, 1, generator=generator)[0]])
        distance = torch.minimum(distance, (samples - centres[-1]).square().sum(1))
    return torch.stack(centres)
