"""The base density of a prior as named tensors, in checkpoints and exports.

Shapes: Z latent.
"""

from collections.abc import Mapping

from torch import Tensor

from ebmscale.density.bases import MomentBase
from ebmscale.density.prior import Base, StandardNormal

BASE = "base/"
"""Before their names."""
MEAN, CHOLESKY = "mean", "cholesky"


def base_tensors(base: Base) -> dict[str, Tensor]:
    """Mean (Z,) and factor (Z, Z) of a `MomentBase`; the standard normal has nothing to keep."""
    return {MEAN: base.mean, CHOLESKY: base.cholesky} if isinstance(base, MomentBase) else {}


def base_from(dim: int, tensors: Mapping[str, Tensor]) -> Base:
    """The base that `base_tensors` took apart; its tensors may be flat."""
    if MEAN not in tensors:
        return StandardNormal(dim)
    return MomentBase(tensors[MEAN].clone(), tensors[CHOLESKY].clone().view(dim, dim))
