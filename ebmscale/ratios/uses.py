"""What a fitted ratio is good for: mutual information, a two-sample test, and an out-of-distribution score.

Shapes: N samples, T test samples, P permutations.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmscale.data.arrays import as_float64
from ebmscale.density.evidence import auc
from ebmscale.errors import ConfigError, DataError
from ebmscale.ratios.fit import fit_ratio, fitted_gaussian
from ebmscale.ratios.fitted import FittedRatio
from ebmscale.ratios.samples import Frame, as_samples, split
from ebmscale.seeds import torch_generator


@dataclass(frozen=True)
class MutualInformation:
    """I(x; y) in nats.

    Attributes:
        nats: KL(joint || g) - KL(p(x) || g_x) - KL(p(y) || g_y), with g the product of the Gaussians that have the
            marginals' moments.
        error: standard error.
        joint: the fit of the joint samples to g.
        marginals: the fits of x and y to their Gaussians, which say how far these are from Gaussian.
    """

    nats: float
    error: float
    joint: FittedRatio
    marginals: tuple[FittedRatio, ...]


def mutual_information(x: Any, y: Any, *, seed: int = 0, **settings: Any) -> MutualInformation:
    """The mutual information of pairs x (N, ...), y (N, ...).

    Args:
        x: one side.
        y: the other, row by row.
        seed: of everything random.
        settings: of `fit_ratio`, by name.

    Raises:
        DataError: unequal numbers of rows, or samples that cannot be used.
    """
    sides = {name: as_samples(side, name) for name, side in (("x", x), ("y", y))}
    x, y = (Frame.of({name: side}).inside(side).flatten(1) for name, side in sides.items())
    if len(x) != len(y):
        raise DataError(f"x has {len(x)} samples and y {len(y)}; they must be pairs.")
    both = torch.cat([x, y], dim=1)
    joint = fit_ratio(fitted_gaussian(both, (x.shape[1], y.shape[1])), both, seed=seed, **settings)
    margins = tuple(fit_ratio(fitted_gaussian(side), side, seed=seed, **settings) for side in (x, y))
    nats = joint.kl - sum(side.kl for side in margins)
    return MutualInformation(nats, math.hypot(joint.kl_error, *(side.kl_error for side in margins)), joint, margins)


class TwoSampleTest(NamedTuple):
    """Whether p and q differ: `statistic` is the area under the ROC curve of a ratio on samples that it has not seen.

    `p_value` is the share of permutations of these samples' labels that reach it: it is valid for any ratio.
    """

    statistic: float
    p_value: float


def two_sample_test(
    p: Any, q: Any, *, num_permutations: int = 999, seed: int = 0, held_out: float = 0.5, **settings: Any
) -> TwoSampleTest:
    """Tests whether samples of p and q come from one distribution.

    A one-stage ratio is fitted to one part of the samples; the other part is tested.

    Args:
        p: samples (N, ...).
        q: samples (N, ...).
        num_permutations: of the labels of the part that is tested.
        seed: of everything random.
        held_out: share of the samples that is tested.
        settings: of `fit_ratio`, by name.

    Raises:
        ConfigError: no permutations.
        DataError: samples that cannot be used.
    """
    if num_permutations < 1 or not 0 < held_out < 1:
        raise ConfigError("num_permutations must be at least 1, and held_out between 0 and 1.")
    generator = torch_generator(seed, "two-sample-test")
    sets = [as_samples(samples, name) for samples, name in ((p, "p"), (q, "q"))]
    orders = [torch.randperm(len(samples), generator=generator) for samples in sets]
    cuts = [max(int(len(samples) * held_out), 2) for samples in sets]
    fitted_to = [samples[order[cut:]] for samples, order, cut in zip(sets, orders, cuts, strict=True)]
    tested = [samples[order[:cut]] for samples, order, cut in zip(sets, orders, cuts, strict=True)]
    one_stage: dict[str, Any] = {"base": "samples", "max_stages": 1, "significance": 1e-9, **settings}
    try:
        ratio = fit_ratio(*fitted_to, seed=seed, **one_stage)
    except DataError as error:
        if "do not overlap" not in str(error):
            raise
        raise DataError("p and q do not overlap, so they differ; no test is needed.") from None
    f_p, f_q = (ratio.log_ratio(samples) for samples in tested)
    statistic = auc(f_q, f_p)
    values = torch.cat([f_q, f_p])
    reached = 0
    for _ in range(num_permutations):
        mixed = values[torch.randperm(len(values), generator=generator)]
        reached += auc(mixed[: len(f_q)], mixed[len(f_q) :]) >= statistic
    return TwoSampleTest(statistic, (1 + reached) / (1 + num_permutations))


class Strangeness(NamedTuple):
    """How strange points are: `score` (T,) is -log q; `p_value` (T,) the share of held-out samples as strange."""

    score: Tensor
    p_value: Tensor


@dataclass(frozen=True)
class OutOfDistribution:
    """Scores points by -log q, with q learned from samples.

    Attributes:
        ratio: of q to the Gaussian with its moments.
        held_out: (N,) scores of samples that it has not seen, in ascending order.
        frame: the coordinates in which the ratio is.
    """

    ratio: FittedRatio
    held_out: Tensor
    frame: Frame

    @classmethod
    def fitted(cls, q: Any, *, seed: int = 0, **settings: Any) -> "OutOfDistribution":
        """Learns q from samples (N, ...) with `fit_ratio`, given its settings by name; a tenth is held out.

        Raises:
            DataError: samples that cannot be used.
        """
        q = as_samples(q, "q")
        frame = Frame.of({"q": q})
        parts = split(frame.inside(q), 0.2, torch_generator(seed, "out-of-distribution"))
        seen = torch.cat([parts.train, parts.validation])
        ratio = fit_ratio(fitted_gaussian(seen), seen, seed=seed, **settings)
        return cls(ratio, (frame.log_volume - ratio.log_density(parts.test)).sort().values, frame)

    def score(self, x: Any) -> Tensor:
        """-log q at points (T, ...), as (T,): higher is stranger."""
        points = torch.from_numpy(as_float64(x, "x"))
        shape = self.frame.centre.shape
        points = points.reshape(len(points), -1)
        if points.shape[1] != shape.numel():
            raise DataError(f"The points have {points.shape[1]} coordinates; the scores are for {tuple(shape)}.")
        rows = self.frame.inside(points.reshape(-1, *shape)).flatten(1)
        return self.frame.log_volume - self.ratio.log_density(rows)

    def judge(self, x: Any) -> Strangeness:
        """The score of points (T, ...), and the probability that a sample of q is at least as strange.

        The p-value is that of a permutation test of the point among the held-out samples, so it is valid whatever
        the ratio has learned, and at least 1 / (number of held-out samples + 1).
        """
        score = self.score(x)
        stranger = len(self.held_out) - torch.searchsorted(self.held_out, score.contiguous(), side="left")
        return Strangeness(score, (1 + stranger).double() / (1 + len(self.held_out)))
