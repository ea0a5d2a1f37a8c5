"""Sets of samples as they are given: checked, flattened, cut into a part to train on and two that are held out.

Shapes: N samples, ... the shape of one sample, Z coordinates.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmscale.errors import DataError

LEAST = 20
"""Samples that a set must have: two of them are held out for each of two purposes."""


class Split(NamedTuple):
    """A set in three parts (N, Z): to train on, to stop and scale by, and for the results alone."""

    train: Tensor
    validation: Tensor
    test: Tensor


def as_samples(values: Any, name: str) -> Tensor:
    """An array or tensor of N samples, as float32 (N, ...); vectors of length N become (N, 1).

    Raises:
        DataError: they cannot be used; `name` says which set it is.
    """
    try:
        tensor = torch.as_tensor(values).detach().float()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{name} is not an array of numbers; give N samples as one array.") from None
    if tensor.dim() == 0:
        raise DataError(f"{name} is a single number; give N samples as one array.")
    tensor = tensor[:, None] if tensor.dim() == 1 else tensor
    size = math.prod(tensor.shape[1:])
    if len(tensor) < LEAST:
        raise DataError(f"{name} has {len(tensor)} samples; at least {LEAST} are needed.")
    if len(tensor) <= size:
        raise DataError(
            f"{name} has {len(tensor)} samples of {size} coordinates; give more samples than coordinates, "
            "or reduce the coordinates first."
        )
    bad = ~tensor.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        raise DataError(
            f"{name} has {int(bad.sum())} samples that are not finite numbers (the first is number "
            f"{int(bad.nonzero()[0])}); leave them out."
        )
    return tensor


def check_alike(p: Sequence[int], q: Sequence[int]) -> None:
    """Checks that samples of p and of q have one shape.

    Raises:
        DataError: they have not.
    """
    if tuple(p) != tuple(q):
        raise DataError(f"A sample of p has the shape {tuple(p)} and one of q {tuple(q)}; they must be alike.")


def split(samples: Tensor, held_out: float, generator: torch.Generator) -> Split:
    """The samples (N, ...), flattened and shuffled, in three parts; half of `held_out` for each of the last two."""
    flat = samples.flatten(1)[torch.randperm(len(samples), generator=generator)]
    part = max(round(len(flat) * held_out / 2), 2)
    return Split(flat[2 * part :], flat[:part], flat[part : 2 * part])
