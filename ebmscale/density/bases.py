"""Base densities p_0 besides the standard normal: Gaussians, and one that is known by samples alone.

Shapes: ... any leading axes, N points, Z latent.
"""

import math

import torch
from torch import Tensor


class Gaussian:
    """N(mean, L L^T) for a mean (Z,) and a lower triangular L (Z, Z)."""

    def __init__(self, mean: Tensor, cholesky: Tensor):
        self.dim = len(mean)
        self.mean, self.cholesky = mean, cholesky
        self._log_normaliser = 0.5 * self.dim * math.log(2 * math.pi) + float(cholesky.diagonal().double().log().sum())

    @classmethod
    def fitted(cls, samples: Tensor, blocks: tuple[int, ...] | None = None) -> "Gaussian":
        """The Gaussian with the samples' (N, Z) mean and covariance, in float64 and returned in their precision.

        Args:
            samples: at least one more than coordinates.
            blocks: sizes of groups of coordinates, in order, between which the covariance is set to zero.

        Raises:
            ValueError: the covariance is not positive definite.
        """
        values = samples.double()
        covariance = torch.cov(values.T).view(values.shape[1], values.shape[1])
        if blocks is not None:
            covariance = torch.block_diag(*(covariance[a:b, a:b] for a, b in _edges(blocks)))
        cholesky, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed):
            raise ValueError("the samples' covariance is not positive definite")
        return cls(values.mean(0).to(samples.dtype), cholesky.to(samples.dtype))

    def log_density(self, z: Tensor) -> Tensor:
        """See `prior.Base.log_density`."""
        white = torch.linalg.solve_triangular(self.cholesky.to(z), (z - self.mean.to(z)).T, upper=False)
        return -0.5 * white.square().sum(dim=0) - self._log_normaliser

    def from_noise(self, noise: Tensor) -> Tensor:
        """See `prior.Base.from_noise`."""
        return self.mean.to(noise) + noise @ self.cholesky.to(noise).T


class MomentBase(Gaussian):
    """The Gaussian with the moments of posterior latents; ratio networks and chains see its whitened coordinates.

    Its density over that of N(0, I) is the first density ratio in closed form: that of the two Gaussians which have
    the moments of either side. Under it the coordinates L^-1 (z - mean) are N(0, I).
    """

    def __init__(self, mean: Tensor, cholesky: Tensor):
        super().__init__(mean, cholesky)
        one = torch.eye(self.dim, dtype=torch.float64, device=cholesky.device)
        self._whiten = torch.linalg.solve_triangular(cholesky.double(), one, upper=False).T.to(cholesky.dtype)

    @classmethod
    def standard(cls, dim: int) -> "MomentBase":
        """N(0, I), before there is anything to fit."""
        return cls(torch.zeros(dim), torch.eye(dim))

    @classmethod
    def of_posteriors(cls, means: Tensor, variances: Tensor) -> "MomentBase":
        """The base with mean and covariance of a mixture of Gaussians with diagonal covariances, one a row.

        Args:
            means: (N, Z).
            variances: (N, Z); zeros for latents that are samples.

        Raises:
            ValueError: the covariance is not positive definite.
        """
        values = means.double()
        covariance = torch.cov(values.T, correction=0) + variances.double().mean(0).diag()
        cholesky, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed):
            raise ValueError("the latents' covariance is not positive definite")
        return cls(values.mean(0).float(), cholesky.float())

    def to(self, device: torch.device | str) -> "MomentBase":
        """The same base on another device."""
        return MomentBase(self.mean.to(device), self.cholesky.to(device))

    def coordinates(self, z: Tensor) -> Tensor:
        """Whitened points L^-1 (z - mean), (..., Z)."""
        return (z - self.mean.to(z)) @ self._whiten.to(z)

    def score_from(self, score: Tensor) -> Tensor:
        """The gradient in z (N, Z) of a function with that gradient in the coordinates."""
        return score @ self._whiten.to(score).T

    def log_density(self, z: Tensor) -> Tensor:
        """See `prior.Base.log_density`."""
        return -0.5 * self.coordinates(z).square().sum(dim=-1) - self._log_normaliser


class SampledOnly:
    """A base that is known by samples alone: densities are counted relative to it, so its own logarithm is 0."""

    def __init__(self, dim: int):
        self.dim = dim

    def log_density(self, z: Tensor) -> Tensor:
        """Zeros (N,)."""
        return z.new_zeros(len(z))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Not possible.

        Raises:
            ValueError: always.
        """
        raise ValueError("a base that is known by samples alone cannot be drawn from")


def _edges(blocks: tuple[int, ...]) -> list[tuple[int, int]]:
    ends = torch.tensor(blocks).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))
