"""Uses of a fitted ratio: mutual information, a two-sample test, and an out-of-distribution score.

Shapes: N samples, T test samples, P permutations.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ebmscale.density.evidence import auc
from ebmscale.errors import ConfigError, DataError
from ebmscale.ratios.bases import fitted_gaussian
from ebmscale.ratios.fit import classify, fit_ratio
from ebmscale.ratios.fitted import FittedRatio
from ebmscale.ratios.samples import Frame, as_pair, as_points, as_samples, split
from ebmscale.ratios.settings import FitSettings
from ebmscale.ratios.watch import Watch
from ebmscale.seeds import torch_generator

LEVEL = 0.05
"""The largest p-value that counts as a difference."""


@dataclass(frozen=True)
class MutualInformation:
    """I(x; y) in nats.

    Attributes:
        nats: KL(joint || g) - KL(p(x) || g_x) - KL(p(y) || g_y), with g the product of the Gaussians that have the
            marginals' moments.
        error: standard error of `nats`.
        joint: the ratio of the joint samples to g.
        marginals: the ratios of x and y to their Gaussians. Their KL divergences say how far x and y are from Gaussian.
    """

    nats: float
    error: float
    joint: FittedRatio
    marginals: tuple[FittedRatio, ...]


def mutual_information(
    x: ArrayLike, y: ArrayLike, *, seed: int = 0, settings: FitSettings | None = None
) -> MutualInformation:
    """The mutual information of pairs x (N, ...), y (N, ...).

    Args:
        x: the first elements of the pairs.
        y: the second elements, in the same order.
        seed: the seed of all random numbers.
        settings: settings of `fit_ratio`; None takes the defaults.

    Raises:
        DataError: x and y have different numbers of rows, or the samples cannot be used.
    """
    sides = {name: as_samples(side, name) for name, side in (("x", x), ("y", y))}
    x, y = (Frame.of({name: side}).inside(side).flatten(1) for name, side in sides.items())
    if len(x) != len(y):
        raise DataError(f"x has {len(x)} samples and y {len(y)}; they must be pairs.")
    both = torch.cat([x, y], dim=1)
    joint = fit_ratio(fitted_gaussian(both, (x.shape[1], y.shape[1])), both, seed=seed, settings=settings)
    margins = tuple(fit_ratio(fitted_gaussian(side), side, seed=seed, settings=settings) for side in (x, y))
    nats = joint.kl - sum(side.kl for side in margins)
    return MutualInformation(nats, math.hypot(joint.kl_error, *(side.kl_error for side in margins)), joint, margins)


class TwoSampleTest(NamedTuple):
    """Whether p and q differ.

    Attributes:
        statistic: area under the ROC curve (AUC) of a ratio on samples that it has not seen.
        p_value: the share of permutations of these samples' labels that reach the statistic. It is valid whatever the
            ratio has learned.
    """

    statistic: float
    p_value: float

    def lines(self) -> list[str]:
        """The result in plain lines."""
        chance = f"AUC {self.statistic:.4f} on held-out samples, p-value {self.p_value:.3g}"
        meaning = (
            f"if p and q were one distribution, an AUC as high as this would come up in {100 * self.p_value:.3g} % of "
            "cases"
        )
        verdict = "p and q differ" if self.p_value <= LEVEL else "these samples do not show a difference of p and q"
        return [chance, f"{verdict}: {meaning}"]


def two_sample_test(
    p: ArrayLike,
    q: ArrayLike,
    *,
    num_permutations: int = 999,
    seed: int = 0,
    held_out: float = 0.5,
    settings: FitSettings | None = None,
    watch: Watch | None = None,
) -> TwoSampleTest:
    """Tests whether samples of p and q come from one distribution.

    A one-stage ratio is fitted to one part of the samples; the other part is tested.

    Args:
        p: samples (N, ...).
        q: samples (N, ...).
        num_permutations: number of permutations of the labels of the tested part.
        seed: the seed of all random numbers.
        held_out: fraction of the samples that is tested.
        settings: settings of `fit_ratio`; None takes the defaults.
        watch: see `fit_ratio`.

    Raises:
        ConfigError: there are no permutations, or `held_out` is not between 0 and 1.
        DataError: the samples cannot be used.
    """
    if not isinstance(num_permutations, Integral) or num_permutations < 1 or not 0 < held_out < 1:
        raise ConfigError("num_permutations must be a whole number from 1 on, and held_out between 0 and 1.")
    generator = torch_generator(seed, "two-sample-test")
    sets = as_pair(p, q)[:2]
    orders = [torch.randperm(len(samples), generator=generator) for samples in sets]
    cuts = [max(int(len(samples) * held_out), 2) for samples in sets]
    fitted_to = [samples[order[cut:]] for samples, order, cut in zip(sets, orders, cuts, strict=True)]
    tested = [samples[order[:cut]] for samples, order, cut in zip(sets, orders, cuts, strict=True)]
    ratio = classify(fitted_to[0], fitted_to[1], FitSettings.of(settings), seed, watch)
    f_p, f_q = (ratio.log_ratio(samples) for samples in tested)
    statistic = auc(f_q, f_p)
    values = torch.cat([f_q, f_p])
    reached = 0
    for _ in range(num_permutations):
        mixed = values[torch.randperm(len(values), generator=generator)]
        reached += auc(mixed[: len(f_q)], mixed[len(f_q) :]) >= statistic
    return TwoSampleTest(statistic, (1 + reached) / (1 + num_permutations))


class Strangeness(NamedTuple):
    """How strange points are.

    Attributes:
        score: (T,), -log q in nats: higher is stranger.
        p_value: (T,), the share of held-out samples of q that are at least as strange.
    """

    score: Tensor
    p_value: Tensor

    def lines(self, most: int = 5) -> list[str]:
        """How many points are strange, and the numbers of the strangest ones, in plain lines."""
        few, expected = int((self.p_value <= LEVEL).sum()), LEVEL * len(self.score)
        order = self.score.argsort(descending=True)[:most].tolist()
        strangest = ", ".join(f"{row} ({float(self.score[row]):.2f}, {float(self.p_value[row]):.3g})" for row in order)
        return [
            f"{few} of {len(self.score)} rows have a p-value of at most {LEVEL}; about {expected:.0f} would if all "
            "were samples of q",
            f"strangest rows (score in nats, p-value): {strangest}",
        ]


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
    def fitted(
        cls, q: ArrayLike, *, seed: int = 0, settings: FitSettings | None = None, watch: Watch | None = None
    ) -> "OutOfDistribution":
        """Learns q from samples (N, ...) with `fit_ratio`, its settings and watch; a tenth of the samples is held out.

        Raises:
            DataError: samples that cannot be used.
        """
        q = as_samples(q, "q")
        frame = Frame.of({"q": q})
        parts = split(frame.inside(q), 0.2, torch_generator(seed, "out-of-distribution"))
        seen = torch.cat([parts.train, parts.validation])
        ratio = fit_ratio(fitted_gaussian(seen), seen, seed=seed, settings=settings, watch=watch)
        return cls(ratio, (frame.log_volume - ratio.log_density(parts.test)).sort().values, frame)

    def score(self, x: ArrayLike) -> Tensor:
        """-log q at points (T, ...), as (T,): higher is stranger.

        Raises:
            DataError: points of another shape than the samples, or that are not finite numbers.
        """
        rows = self.frame.inside(as_points(x, self.frame.centre.shape)).flatten(1)
        return self.frame.log_volume - self.ratio.log_density(rows)

    def judge(self, x: ArrayLike) -> Strangeness:
        """The score of points (T, ...), and the p-value of the hypothesis that they are samples of q.

        The p-value is that of a permutation test of the point among the held-out samples, so it is valid whatever
        the ratio has learned, and at least 1 / (number of held-out samples + 1).
        """
        score = self.score(x)
        stranger = len(self.held_out) - torch.searchsorted(self.held_out, score.contiguous(), side="left")
        return Strangeness(score, (1 + stranger).double() / (1 + len(self.held_out)))
