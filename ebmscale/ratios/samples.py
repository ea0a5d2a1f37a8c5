"""Sets of samples as they are given: checked, centred, flattened, cut into a part to train on and two held out.

Shapes: N samples, ... the shape of one sample, Z coordinates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmscale.data.arrays import as_float64, as_numbers
from ebmscale.errors import DataError

LEAST = 20
"""Samples that a set must have: two of them are held out for each of two purposes."""

_ORDINARY = (1e-6, 1e6)  # spreads that need no other unit
_LOST = 0.01  # a part of a spread: more may not be lost where numbers are rounded to float32
_LEAST_SPREAD = 1e-12  # in the unit of the widest set: the squares of less are nearly 0 in float32
_FAR = 2.0**24  # nearer to 0, a spread of a few roundings is that of a constant


class Split(NamedTuple):
    """A set in three parts (N, Z): to train on, to stop and scale by, and for the results alone."""

    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def repeated(self) -> float:
        """The share of the samples in `test` that are equal to one in `train`."""
        train, test = ([row.tobytes() for row in part.numpy()] for part in (self.train, self.test))
        known = set(train)
        return sum(row in known for row in test) / len(test)


@dataclass(frozen=True)
class Frame:
    """The coordinates in which samples far from 0 keep their digits: (x - centre) / scale.

    Attributes:
        centre: float64, of the shape of one sample.
        scale: 1 unless the samples spread very little or very far.
        pixels: whether bytes stand for values in [-1, 1].
    """

    centre: Tensor
    scale: float = 1.0
    pixels: bool = False

    @classmethod
    def of(cls, sets: Mapping[str, Tensor], pixels: bool = False) -> "Frame":
        """The frame of sets (N, ...) by name: in each coordinate, the mean of the set that spreads least.

        Raises:
            DataError: float32 cannot hold one of the sets beside the other.
        """
        moments = [_moments(samples) for samples in sets.values()]
        means, spreads = (torch.stack(parts) for parts in zip(*moments, strict=True))
        centre = means.gather(0, spreads.argmin(0, keepdim=True))[0]
        distance = (means - centre).abs()
        widest = float(torch.maximum(distance, spreads).max())
        frame = cls(centre, widest if widest and not _ORDINARY[0] < widest < _ORDINARY[1] else 1.0, pixels)
        for (name, samples), spread in zip(sets.items(), spreads, strict=True):
            frame.check(samples, spread, name)
        return frame

    @classmethod
    def none(cls, shape: Sequence[int]) -> "Frame":
        """The coordinates as they are."""
        return cls(torch.zeros(tuple(shape), dtype=torch.float64))

    @property
    def log_volume(self) -> float:
        """By how much a log density in the frame is larger than one outside."""
        return self.centre.numel() * math.log(self.scale)

    def check(self, samples: Tensor, spread: Tensor, name: str) -> None:
        """Checks that samples (N, ...) with this spread (...) keep their digits in float32.

        Raises:
            DataError: they do not.
        """
        exact = (samples - self.centre) / self.scale
        error = (exact - exact.float().double()).abs().amax(0) * self.scale
        lost = error > _LOST * spread
        if self.scale != 1:
            lost |= spread < _LEAST_SPREAD * self.scale
        lost &= spread > 0
        if bool(lost.any()):
            place = int(lost.flatten().nonzero()[0])
            raise DataError(
                f"{name} spreads too little in coordinate {place} for how far it lies from the other set: 32-bit "
                "numbers cannot hold both. Shift or scale the samples, or leave the coordinate out."
            )

    def inside(self, samples: Tensor) -> Tensor:
        """Points (N, ...) in float64 as the networks see them, in float32."""
        return ((samples - self.centre) / self.scale).float()


def as_samples(values: Any, name: str) -> Tensor:
    """An array or tensor of N samples, as float64 (N, ...); vectors of length N become (N, 1).

    Raises:
        DataError: they cannot be used; `name` says which set it is.
    """
    tensor = torch.from_numpy(as_float64(values, name))
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
    check_finite(tensor, name)
    if len(tensor) and bool(_rounds_away(tensor).any()):
        raise DataError(
            f"{name} lies so far from 0 that 64-bit numbers do not tell its samples apart; subtract one number from p "
            "and q before they are made float64."
        )
    return tensor


def as_points(values: Any, shape: Sequence[int], name: str = "x") -> Tensor:
    """An array or tensor of points (N, ...) of one shape, or flattened, as float64 (N, ...).

    Raises:
        DataError: they have another shape, or are not finite numbers; `name` says which array it is.
    """
    tensor, size = torch.from_numpy(as_float64(values, name)), math.prod(shape)
    tensor = tensor[:, None] if tensor.dim() == 1 and size == 1 else tensor
    if tensor.dim() < 2 or math.prod(tensor.shape[1:]) != size:
        raise DataError(
            f"{name} has the shape {tuple(tensor.shape)}, and one sample of q has the shape {tuple(shape)}; "
            "give an array of points of that shape."
        )
    check_finite(tensor, name)
    return tensor.reshape(-1, *shape)


def as_pair(p: Any, q: Any) -> tuple[Tensor, Tensor, bool]:
    """Samples of p and q as `as_samples` has them, and whether bytes were taken for values in [-1, 1].

    They are where both sets are bytes, or one is and the other has fractions in [-1, 1]. Beside other numbers, bytes
    are numbers.

    Raises:
        DataError: one of the sets cannot be used, or bytes are beside fractions that may be on another scale.
    """
    raw = as_numbers(p, "p"), as_numbers(q, "q")
    are_bytes = [values.dtype == np.uint8 for values in raw]
    samples = [as_samples(values, name) for values, name in zip(raw, ("p", "q"), strict=True)]
    pixels = any(are_bytes) and all(
        is_bytes or (values.dtype.kind == "f" and float(tensor.abs().max()) <= 1)
        for values, tensor, is_bytes in zip(raw, samples, are_bytes, strict=True)
    )
    if pixels and not all(are_bytes) and float(samples[are_bytes.index(False)].min()) >= 0:
        raise DataError(
            "One set has bytes and the other numbers from 0 to 1, but bytes are compared as values from -1 to 1; give "
            "both sets as bytes, or both as floats of one scale."
        )
    if pixels:
        samples = [as_pixels(one) if is_bytes else one for one, is_bytes in zip(samples, are_bytes, strict=True)]
    return samples[0], samples[1], pixels


def as_pixels(values: Tensor) -> Tensor:
    """Numbers 0..255 as values in [-1, 1]."""
    return values / 127.5 - 1


def check_alike(p: Sequence[int], q: Sequence[int]) -> None:
    """Checks that samples of p and of q have one shape.

    Raises:
        DataError: they have not.
    """
    if tuple(p) != tuple(q):
        raise DataError(f"A sample of p has the shape {tuple(p)} and one of q {tuple(q)}; they must be alike.")


def check_finite(samples: Tensor, name: str) -> None:
    """Refuses samples (N, ...) that hold NaN or infinity; the DataError calls them `name`."""
    bad = samples.isfinite().logical_not().flatten(1).any(1)
    if bool(bad.any()):
        raise DataError(
            f"{name} has {int(bad.sum())} samples that are not finite numbers (the first is number "
            f"{int(bad.nonzero()[0])}); leave them out."
        )


def split(samples: Tensor, held_out: float, generator: torch.Generator) -> Split:
    """The samples (N, ...), flattened and shuffled, in three parts; half of `held_out` for each of the last two."""
    flat = samples.flatten(1)[torch.randperm(len(samples), generator=generator)]
    part = max(round(len(flat) * held_out / 2), 2)
    return Split(flat[2 * part :], flat[:part], flat[part : 2 * part])


def _moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over samples (N, ...), of numbers whose squares may be too large."""
    unit = samples.abs().amax(0).clamp_min(1e-300)
    scaled = samples / unit
    return scaled.mean(0) * unit, scaled.std(0) * unit


def _rounds_away(samples: Tensor) -> Tensor:
    """The coordinates (...) in which float64 has few values between the samples' least and greatest."""
    low, high = samples.amin(0), samples.amax(0)
    largest = torch.maximum(low.abs(), high.abs())
    return (high > low) & (largest > _FAR) & (largest * torch.finfo(torch.float64).eps > 1e-3 * (high - low))
