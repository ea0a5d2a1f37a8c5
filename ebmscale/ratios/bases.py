"""Densities that a ratio begins at: a user's own, and the Gaussian with the moments of samples.

Shapes: N samples, Z coordinates.
"""

from typing import TypeGuard, cast

from torch import Tensor

from ebmscale.density.bases import Gaussian
from ebmscale.density.prior import Base, Density
from ebmscale.errors import DataError


def is_density(p: object) -> TypeGuard[Density]:
    """Whether it is a density and not samples."""
    return hasattr(p, "log_density") and hasattr(p, "from_noise")


def as_base(density: Density) -> Base:
    """The density with the members that a base has besides."""
    return cast(Base, density) if hasattr(density, "in_coordinates") else _Given(density)


class _Given(Base):
    """A user's own density as a base."""

    def __init__(self, density: Density):
        self.dim = density.dim
        self._density = density

    def log_density(self, z: Tensor) -> Tensor:
        return self._density.log_density(z)

    def from_noise(self, noise: Tensor) -> Tensor:
        return self._density.from_noise(noise)


def fitted_gaussian(samples: Tensor, blocks: tuple[int, ...] | None = None) -> Gaussian:
    """The Gaussian with the moments of samples (N, Z); see `Gaussian.fitted`.

    Raises:
        DataError: the samples lie in fewer dimensions than they have coordinates.
    """
    try:
        return Gaussian.fitted(samples, blocks)
    except ValueError:
        raise DataError(
            "The samples lie in fewer dimensions than they have coordinates, so no Gaussian can be fitted: remove "
            "constant and repeated coordinates."
        ) from None
