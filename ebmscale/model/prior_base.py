"""The base density of a prior as named tensors, in checkpoints and exports.

Shapes: C components, Z latent.
"""

from collections.abc import Mapping

from torch import Tensor

from ebmscale.density.bases import Mixture, MomentBase
from ebmscale.density.prior import Base, StandardNormal

BASE = "base/"
"""Before their names."""


def base_tensors(base: Base) -> dict[str, Tensor]:
    """Mean (Z,) and factor (Z, Z) of a `MomentBase`, and its mixture's weights (C,), means (C, Z), factors (C, Z, Z).

    The standard normal has nothing to keep.
    """
    if not isinstance(base, MomentBase):
        return {}
    found = {"mean": base.mean, "cholesky": base.cholesky}
    if base.inside is not None:
        found |= {"weights": base.inside.weights, "means": base.inside.means, "choleskys": base.inside.choleskys}
    return found


def base_from(dim: int, tensors: Mapping[str, Tensor]) -> Base:
    """The base that `base_tensors` took apart; its tensors may be flat."""
    if "mean" not in tensors:
        return StandardNormal(dim)
    inside = None
    if "weights" in tensors:
        weights, means, choleskys = (tensors[name].clone() for name in ("weights", "means", "choleskys"))
        inside = Mixture(weights, means.view(-1, dim), choleskys.view(-1, dim, dim))
    return MomentBase(tensors["mean"].clone(), tensors["cholesky"].clone().view(dim, dim), inside)
