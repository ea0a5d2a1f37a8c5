"""A fitted density ratio: its value at any point, and how reliable it is.

Shapes: N points, ... the shape of one point, Z coordinates.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmscale.data.arrays import as_float64, as_numbers
from ebmscale.density.evidence import Evidence
from ebmscale.density.path import Normaliser
from ebmscale.density.prior import RatioSequence
from ebmscale.errors import DataError
from ebmscale.model.sampler import total
from ebmscale.ratios.samples import Frame, as_pixels, check_finite
from ebmscale.stages.record import StageRecord

POOR = 0.05
"""`warning` speaks up if fewer effective samples of p than this fraction are left,"""
MOST_REPEATED = 0.05
"""or if more held-out samples than this fraction are equal to samples that were trained on,"""
MOST_BEYOND = 0.05
"""or if more samples of q than this fraction lie beyond all of p's."""
TWO_SIGMA = 0.97725
"""The probability of a normal variable below two standard deviations."""


StageRow = StageRecord
"""How a stage of a fit ended."""


@dataclass(frozen=True)
class FittedRatio:
    """log q - log p of two sets of samples, as a product of K ratios, normalised.

    Example:
        >>> fitted = fit_ratio(p, q)
        >>> fitted.log_ratio(q)  # (M,), in nats
        >>> low, high = fitted.interval  # of KL(q || p) in nats

    Attributes:
        sequence: the base density with its ratios.
        normaliser: log Z_K, by which they are normalised. Where p is known by samples alone, it is measured by bridge
            sampling between held-out samples of p and of q.
        shape: of one point.
        kl: an estimate of KL(q || p) in nats, the mean of the log ratio over held-out samples of q. With a known base
            it is a lower bound, up to its error. It is too small by KL(q || p e^(log ratio)).
        kl_error: its standard error. Where p and q were both fitted from the Gaussian with p's moments, the error of
            these moments is part of it.
        missing: an estimate in nats of how much too small `kl` is: the mean log ratio on training samples minus that on
            held-out ones, plus what the last stage added.
        calibration: how well the log ratio classifies held-out samples of q and of p.
        stages: how every stage ended.
        num_held_out: samples of q that `kl` was measured on.
        effective: where p is known by samples alone, their effective sample size in the last prior as a fraction;
            otherwise 1.
        repeated: the fraction of held-out samples of q, or of p if there it is larger, that are equal to samples that
            were trained on.
        extrapolated: the fraction of q's samples that are less likely than all of p's samples under p, as it was fitted
            from the Gaussian with its moments; otherwise 0.
        reference: where base and p differ, the ratio of p to the base. It is subtracted.
        frame: the coordinates of the sequence and its base; None if they are the coordinates of the points.
        stopped: why the fit ended before it was done; None if it was done.
    """

    sequence: RatioSequence
    normaliser: Normaliser
    shape: tuple[int, ...]
    kl: float
    kl_error: float
    missing: float
    calibration: Evidence
    stages: tuple[StageRow, ...]
    num_held_out: int
    effective: float = 1.0
    repeated: float = 0.0
    extrapolated: float = 0.0
    reference: "FittedRatio | None" = None
    frame: Frame | None = None
    stopped: str | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end for KL(q || p) in nats: `kl` ± two standard errors; `missing` is added to the upper.

        Where few samples are held out it is more than two, by Student's t.
        """
        from scipy.special import stdtrit  # noqa: PLC0415  a slow import

        half = float(stdtrit(self.num_held_out - 1, TWO_SIGMA)) * self.kl_error
        return self.kl - half, self.kl + half + self.missing

    @property
    def warning(self) -> str | None:
        """Why the interval cannot be trusted, and what to do; None if no problem was found."""
        share_beyond, share_repeated = (f"{100 * share:.0f} %" for share in (self.extrapolated, self.repeated))
        last = self.stages[-1] if self.stages else None
        found = {
            "no KL divergence is below 0, so log Z is wrong: the particles could not follow the ratio; give more "
            "samples, or use base='samples' (--base samples)": self.interval[1] < 0,
            f"{share_repeated} of the held-out samples are equal to samples that were trained on, so they do not show "
            "whether the ratio overfits; if some samples are copies of others, give each only once": self.repeated
            > MOST_REPEATED,
            "p's samples hardly reach q, so the ratio is too small: use another base, or more samples of p": (
                self.effective < POOR
            ),
            f"{share_beyond} of q's samples lie beyond all of p's, where p is extrapolated from the Gaussian with its "
            "moments, so KL(q || p) can be far from this: give more samples of p, or p as a density": (
                self.extrapolated > MOST_BEYOND
            ),
            "the last stage still added a tenth of the whole, so the ratio is too small: allow more stages": (
                last is not None and last.nats > max(0.1 * self.kl, 4 * last.nats_error)
            ),
            "the ratio overfits: it is much larger on training than on held-out samples; give more samples": (
                self.missing > max(0.15 * self.kl, 0.1)
            ),
            "no difference of p and q was found, so the interval has no width, and there can be a small one: test with "
            "two_sample_test (--test), or give more samples": self.kl_error == 0,
        }
        return next((words for words, holds in found.items() if holds), None)

    @property
    def num_stages(self) -> int:
        """K."""
        return self.sequence.num_stages

    def log_ratio(self, x: Any) -> Tensor:
        """log q - log p in nats at points x (N, ...), as (N,).

        Raises:
            DataError: the points do not have the shape of the samples that it was fitted to, or are not finite.
        """
        rows = self._rows(x)
        value = total(self.sequence, rows) - self.normaliser.log_z
        return value if self.reference is None else value - self.reference.log_ratio(x)

    def log_density(self, x: Any) -> Tensor:
        """log q in nats at points x (N, ...), as (N,); needs a known base density.

        Raises:
            DataError: the base is known by samples alone, or the points are as `log_ratio` refuses them.
        """
        if not self.sequence.base.is_known:
            raise DataError("log q needs a base density: fit with base='gaussian', or give p as a density.")
        rows = self._rows(x)
        volume = 0.0 if self.frame is None else self.frame.log_volume
        return total(self.sequence, rows) + self.sequence.base.log_density(rows) - self.normaliser.log_z - volume

    def lines(self) -> list[str]:
        """The results as lines of text."""
        found = self.calibration
        low, high = self.interval
        said = [
            f"KL(q || p) {self.kl:.4f} ± {self.kl_error:.4f} nats (between {low:.4f} and {high:.4f}), "
            f"{self.num_stages} stage(s), log Z {self.normaliser.log_z:.4f} ± {self.normaliser.error:.4f}",
            f"on held-out samples: AUC {found.auc:.4f}, calibration error {found.calibration_error:.4f}",
        ]
        if self.reference is not None:
            said.append("p and q were both fitted from the Gaussian with p's moments")
        if self.effective < 1:
            said.append(f"{100 * self.effective:.1f} % of p's samples count in the last prior")
        if self.stopped is not None:
            said.append(f"the fit is not complete: {self.stopped}")
        if self.warning is not None:
            said.append(self.warning)
        return said

    def _rows(self, x: Any) -> Tensor:
        numbers = as_numbers(x, "x")
        x = torch.from_numpy(as_float64(numbers, "x"))
        if self.frame is not None and self.frame.pixels and numbers.dtype == np.uint8:
            x = as_pixels(x)
        x = x[:, None] if x.dim() == 1 and self.shape == (1,) else x
        if tuple(x.shape[1:]) != self.shape:
            raise DataError(f"The points have the shape {tuple(x.shape[1:])}; the ratio was fitted to {self.shape}.")
        check_finite(x, "x")
        return (x.float() if self.frame is None else self.frame.inside(x)).flatten(1)


def in_frame(fitted: FittedRatio, frame: Frame) -> FittedRatio:
    """A ratio that was fitted in a frame, at points outside of it."""
    reference = None if fitted.reference is None else in_frame(fitted.reference, frame)
    return replace(fitted, frame=frame, reference=reference)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values (N,) and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
