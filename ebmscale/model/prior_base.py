"""The base density of a prior from the named tensors of a checkpoint or an export.

Shapes: C components, Z latent.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ebmscale.density.bases import MomentBase
from ebmscale.density.mixture import Mixture
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
        used = weights.nonzero()[:, 0]  # the others fill up the room for the most that was allowed
        inside = Mixture(weights[used], means.view(-1, dim)[used], choleskys.view(-1, dim, dim)[used])
    base = MomentBase(tensors["mean"].clone(), tensors["cholesky"].clone().view(dim, dim), inside)
    if not math.isfinite(base.log_volume):
        raise DamagedError("The base density that was saved is damaged: its covariance is singular.")
    return base


def filled_up(tensors: Mapping[str, Tensor], num_components: int) -> dict[str, Tensor]:
    """The tensors of a `MomentBase` with room for so many components (C): those that it lacks have weight 0.

    So a checkpoint has one form whatever number is chosen, and `base_from` gives the same density. N(0, I) has no
    tensors, and none are added.
    """
    if num_components == 1 or not tensors:
        return dict(tensors)
    dim = len(tensors["mean"])
    form = MomentBase.standard(dim, num_components).tensors()
    found = {name: one.to(tensors["mean"]) for name, one in form.items()} | dict(tensors)
    if "weights" in tensors:
        lacking = num_components - len(tensors["weights"])
        for name in ("weights", "means", "choleskys"):
            found[name] = torch.cat([tensors[name], form[name][:lacking].to(tensors[name])])
    else:
        lacking = num_components - 1
    found["weights"] = torch.cat([found["weights"][: num_components - lacking], found["weights"].new_zeros(lacking)])
    if "weights" not in tensors:
        found["weights"][0] = 1.0
    return found


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
