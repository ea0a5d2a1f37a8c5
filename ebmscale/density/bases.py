"""Base densities p_0 besides the standard normal: Gaussians, and one that is known by samples alone.

Shapes: ... any leading axes, N points, Z latent.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ebmscale.density.mixture import Mixture
from ebmscale.density.prior import Base, StandardNormal
from ebmscale.density.roots import factor, inverse_of, symmetric_root


class Gaussian(Base):
    """The Gaussian density N(mean, L L^T).

    Args:
        mean: (Z,).
        cholesky: (Z, Z), L, lower triangular.

    Example:
        >>> p = Gaussian.fitted(torch.randn(1000, 3))
        >>> p.log_density(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, mean: Tensor, cholesky: Tensor):
        self.dim = len(mean)
        self.mean, self.cholesky = mean, cholesky
        inverse, self._log_det = inverse_of(cholesky.double())
        self._whiten = inverse.T.to(cholesky.dtype)
        self._log_normaliser = 0.5 * self.dim * math.log(2 * math.pi) + self._log_det

    @classmethod
    def fitted(cls, samples: Any, blocks: tuple[int, ...] | None = None) -> "Gaussian":
        """The Gaussian with the mean and covariance of samples (N, Z). It is computed in float64 and has their dtype.

        Args:
            samples: (N, Z) with N > Z, a tensor or an array.
            blocks: sizes of groups of coordinates, in order. The covariance between two groups is set to zero.

        Raises:
            ValueError: the covariance is not positive definite.
        """
        samples = torch.as_tensor(samples)
        values = samples.double()
        covariance = torch.cov(values.T).view(values.shape[1], values.shape[1])
        if blocks is not None:
            covariance = torch.block_diag(*(covariance[a:b, a:b] for a, b in _edges(blocks)))
        return cls(values.mean(0).to(samples.dtype), factor(covariance).to(samples.dtype))

    def log_density(self, z: Tensor) -> Tensor:
        """See `prior.Base.log_density`."""
        white = torch.linalg.solve_triangular(self.cholesky.to(z), (z - self.mean.to(z)).T, upper=False)
        return -0.5 * white.square().sum(dim=0) - self._log_normaliser

    @torch.no_grad()
    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `prior.Base.evaluate`; in closed form."""
        whiten = self._whiten.to(z)
        white = (z - self.mean.to(z)) @ whiten
        return -0.5 * white.square().sum(dim=1) - self._log_normaliser, -white @ whiten.T

    def from_noise(self, noise: Tensor) -> Tensor:
        """See `prior.Base.from_noise`."""
        return self.mean.to(noise) + noise @ self.cholesky.to(noise).T

    def to(self, device: torch.device | str) -> "Gaussian":
        """See `prior.Base.to`."""
        return Gaussian(self.mean.to(device), self.cholesky.to(device))


class MomentBase(Gaussian):
    """A base that is fitted to posterior latents; ratio networks and chains see its whitened coordinates.

    Its density over that of N(0, I) is the first density ratio, in closed form. The coordinates L^-1 (z - mean) have
    mean 0 and covariance I under it; there it is N(0, I), or a `Mixture` of Gaussians.

    Args:
        mean: (Z,).
        cholesky: (Z, Z), L: lower triangular, or symmetric, so that each coordinate of maps stays near its own place.
        inside: the density of the coordinates; None is N(0, I).
    """

    def __init__(self, mean: Tensor, cholesky: Tensor, inside: Mixture | None = None):
        super().__init__(mean, cholesky)
        self.inside = inside
        self.log_volume = self._log_det

    @classmethod
    def standard(cls, dim: int, num_components: int = 1) -> "MomentBase":
        """N(0, I), before there is anything to fit, as a mixture of so many equal parts."""
        inside = Mixture.standard(dim, num_components) if num_components > 1 else None
        return cls(torch.zeros(dim), torch.eye(dim), inside)

    @classmethod
    def of_posteriors(
        cls,
        means: Tensor,
        variances: Tensor,
        num_components: int = 1,
        generator: torch.Generator | None = None,
        num_fits: int = 1,
        symmetric: bool = False,
    ) -> "MomentBase":
        """The base with mean and covariance of a mixture of Gaussians with diagonal covariances, one a row.

        Args:
            means: (N, Z).
            variances: (N, Z); zeros for latents that are samples.
            num_components: of the mixture in the coordinates; 1 is none.
            generator: of the draws that the mixture is fitted to.
            num_fits: see `Mixture.fitted`.
            symmetric: whether the covariance's root is symmetric, for latents that are maps.

        Raises:
            ValueError: the covariance is not positive definite.
        """
        values = means.double()
        covariance = torch.cov(values.T, correction=0) + variances.double().mean(0).diag()
        root = symmetric_root(covariance) if symmetric else factor(covariance)
        base = cls(values.mean(0).float(), root.float())
        if num_components == 1:
            return base
        noise = torch.randn(means.shape, generator=generator)
        draws = base.coordinates(means.float() + variances.float().sqrt() * noise)
        mixture = Mixture.fitted(draws, num_components, generator, num_fits, axes=base.axes())
        return cls(base.mean, base.cholesky, mixture)

    def to(self, device: torch.device | str) -> "MomentBase":
        """The same base on another device."""
        inside = self.inside.to(device) if self.inside is not None else None
        return MomentBase(self.mean.to(device), self.cholesky.to(device), inside)

    def coordinates(self, z: Tensor) -> Tensor:
        """Whitened points L^-1 (z - mean), (..., Z), of points z (..., Z)."""
        return (z - self.mean.to(z)) @ self._whiten.to(z)

    def axes(self) -> Tensor:
        """A (Z, Z): x @ A are the points with coordinates x, less the mean, each in units of its standard deviation."""
        return (self.cholesky / self.cholesky.norm(dim=1, keepdim=True)).T

    def from_coordinates(self, x: Tensor) -> Tensor:
        """Points (N, Z) with these coordinates."""
        return super().from_noise(x)

    def in_coordinates(self) -> Base:
        """The density of the coordinates."""
        return self.inside or StandardNormal(self.dim)

    def tensors(self) -> dict[str, Tensor]:
        """`mean` (Z,), `cholesky` (Z, Z); of a mixture also `weights` (C,), `means` (C, Z), `choleskys` (C, Z, Z)."""
        inside = self.inside.components._asdict() if self.inside is not None else {}
        return {"mean": self.mean, "cholesky": self.cholesky, **inside}

    def score_from(self, score: Tensor) -> Tensor:
        """The gradient in z (N, Z) of a function with that gradient in the coordinates."""
        return score @ self._whiten.to(score).T

    def log_density(self, z: Tensor) -> Tensor:
        """See `prior.Base.log_density`."""
        white = self.coordinates(z)
        if self.inside is not None:
            return self.inside.log_density(white) - self.log_volume
        return -0.5 * white.square().sum(dim=-1) - self._log_normaliser

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `prior.Base.evaluate`; in closed form."""
        if self.inside is None:
            return super().evaluate(z)
        log_density, score = self.inside.evaluate(self.coordinates(z))
        return log_density - self.log_volume, self.score_from(score)

    def from_noise(self, noise: Tensor) -> Tensor:
        """See `prior.Base.from_noise`."""
        return self.from_coordinates(noise if self.inside is None else self.inside.from_noise(noise))


class SampledOnly(Base):
    """A base that is known by samples alone: densities are counted relative to it, so its own logarithm is 0."""

    is_known = False

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
