"""The base density of a prior from the named tensors of a checkpoint or an export.

Shapes: C components, Z latent.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ebmscale.density.bases import Mixture, MomentBase
from ebmscale.density.prior import Base, StandardNormal
from ebmscale.errors import DamagedError

BASE = "base/"
"""Prefix of the names of their tensors."""
MOST_COMPONENTS = 100_000


def base_from(dim: int, tensors: Mapping[str, Tensor]) -> Base:
    """The base density with the tensors of `Base.tensors`, which may be flattened; N(0, I) without any.

    Args:
        dim: Z.
        tensors: by name.

    Raises:
        DamagedError: the tensors do not fit, or the covariance is singular.
    """
    if not tensors:
        return StandardNormal(dim)
    check_base(dim, {name: tensor.shape for name, tensor in tensors.items()})
    inside = None
    if "weights" in tensors:
        weights, means, choleskys = (tensors[name].clone() for name in ("weights", "means", "choleskys"))
        inside = Mixture(weights, means.view(-1, dim), choleskys.view(-1, dim, dim))
    base = MomentBase(tensors["mean"].clone(), tensors["cholesky"].clone().view(dim, dim), inside)
    if not math.isfinite(base.log_volume):
        raise DamagedError("The base density that was saved is damaged: its covariance is singular.")
    return base


def check_base(dim: int, shapes: Mapping[str, Sequence[int]]) -> None:
    """Compares the shapes of the tensors of a base with `dim` = Z.

    Raises:
        DamagedError: they do not fit.
    """
    num_components = math.prod(shapes.get("weights", ()))
    inside = {"weights": num_components, "means": num_components * dim, "choleskys": num_components * dim * dim}
    expected = {"mean": dim, "cholesky": dim * dim} | (inside if "weights" in shapes else {})
    if {name: math.prod(shape) for name, shape in shapes.items()} != expected or num_components > MOST_COMPONENTS:
        raise DamagedError(f"The base density that was saved does not fit a latent space of {dim} dimensions.")
