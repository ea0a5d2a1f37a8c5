"""Samples of p_k where p is known by samples alone: these samples, weighted by the ratios.

Shapes: N samples, Z coordinates.
"""

import math

import torch
from torch import Tensor, nn

from ebmscale.density.estimates import importance_estimate
from ebmscale.density.evidence import effective_sample_size
from ebmscale.density.prior import RatioSequence
from ebmscale.stages.draws import Draws
from ebmscale.stages.particles import Strength
from ebmscale.stages.source import Chosen, Grown
from ebmscale.stages.supplies import Negatives, Supply, again
from ebmscale.stages.trainer import evaluated

LEAST_EFFECTIVE = 50
"""Effective samples of p below which its samples do not reach q."""


class WeightedSamples:
    """A supply of samples of p drawn in proportion to their weights e^(f_1 + ... + f_{k-1}).

    The same samples are drawn again and again: their number is what there is, and the evidence says how far they are
    memorised.

    Args:
        rows: (N, Z).
        log_weights: (N,), float64.
        held_out: (M, Z), of which no update sees any, and
        held_out_log_weights: (M,).
        draws: noise.
        name: of the noise.
    """

    kind, passes = "weighted samples", 0.0

    def __init__(
        self,
        rows: Tensor,
        log_weights: Tensor,
        held_out: Tensor,
        held_out_log_weights: Tensor,
        draws: Draws,
        name: str,
    ):
        self._rows, self._ends = rows, torch.softmax(log_weights, 0).cumsum(0)
        self._held_out = Negatives(held_out, normalised(held_out_log_weights))
        self._draws, self._name = draws, name

    def draw(self, num: int, position: int) -> Negatives:
        """See `supplies.Supply.draw`."""
        uniform = self._draws.noise(num, f"{self._name}/samples", position).uniform()
        rows = self._rows[torch.searchsorted(self._ends, uniform.double()).clamp(max=len(self._rows) - 1)]
        return Negatives(rows, torch.ones(len(rows)))

    def fresh(self, num: int, position: int) -> Negatives:
        """See `supplies.Supply.fresh`; there are no others than those held out."""
        return self._held_out

    def used(self, batch: int, position: int) -> Negatives:
        """See `supplies.Supply.used`."""
        return again(self.draw, batch, position)


class FromSamples:
    """See `source.PriorSource`: samples of p in three parts, which are weighted and never moved.

    Args:
        parts: to train on (N, Z), to tune by, and to judge by.
        min_share: effective share of the samples below which a ratio is not strengthened.
        gain_limit: of any ratio.
        draws: noise.
    """

    def __init__(self, parts: tuple[Tensor, Tensor, Tensor], min_share: float, gain_limit: float, draws: Draws):
        self._parts, self._min_share, self._gain_limit, self._draws = parts, min_share, gain_limit, draws
        self._log_weights = [torch.zeros(len(part), dtype=torch.float64) for part in parts]
        self._pending: list[Tensor] = []
        self._num_stages = 0
        self.reaches = True

    @property
    def share(self) -> float:
        """The fraction of p's held-out samples that still counts: the lesser of those that tune and that judge."""
        return min(share_of(weights) for weights in self._log_weights[1:])

    def supply(self) -> Chosen:
        """See `source.PriorSource.supply`."""
        train, tune, _ = zip(self._parts, self._log_weights, strict=True)
        supply = WeightedSamples(*train, *tune, self._draws, f"stage-{self._num_stages + 1}")
        return Chosen(supply, "p is known by samples alone")

    def tuning(self, supply: Supply) -> Negatives:
        """See `source.PriorSource.tuning`."""
        return Negatives(self._parts[1], normalised(self._log_weights[1]))

    def judging(self, supply: Supply) -> Negatives:
        """See `source.PriorSource.judging`."""
        return Negatives(self._parts[2], normalised(self._log_weights[2]))

    def tilt(self, ratio: nn.Module, q: Tensor) -> Strength:
        """See `source.PriorSource.tilt`; it goes no further than `min_share` of the samples can follow.

        Where that is what stops it, or few samples are left to carry the ratio, `reaches` becomes false. The power is
        1, because log p is not known.
        """
        mean_q = float(evaluated(ratio, q).mean())
        self._pending = [evaluated(ratio, part) for part in self._parts]
        low, high = 0.0, self._gain_limit
        stopped = False
        for _ in range(50):
            middle = 0.5 * (low + high)
            raised = [w + middle * f for w, f in zip(self._log_weights, self._pending, strict=True)][:2]
            mean_p = float(torch.softmax(raised[1], 0) @ self._pending[1])
            bears = min(share_of(one) for one in raised) >= self._min_share
            stopped = not bears if mean_p <= mean_q else stopped
            low, high = (middle, high) if bears and mean_p <= mean_q else (low, middle)
        raised = [w + low * f for w, f in zip(self._log_weights, self._pending, strict=True)]
        effective = share_of(raised[1]) * len(raised[1])
        if stopped or effective < LEAST_EFFECTIVE:
            self.reaches = False
        self._pending = [low * one for one in self._pending]
        return Strength(low if low > 1e-6 else 0.0)

    def accept(self, sequence: RatioSequence) -> Grown:
        """See `source.PriorSource.accept`."""
        before, _ = importance_estimate(self._log_weights[2])
        old = self._log_weights[2] - before
        self._log_weights = [w + f for w, f in zip(self._log_weights, self._pending, strict=True)]
        self._num_stages = sequence.num_stages
        log_z, error = importance_estimate(self._log_weights[2])
        spread = (self._log_weights[2] - log_z).exp() - old.exp()
        return Grown(float(log_z), float(error), float(log_z - before), float(spread.std()) / math.sqrt(len(old)))


def share_of(log_weights: Tensor) -> float:
    """Effective sample size of weights (N,) as a fraction."""
    return effective_sample_size(log_weights) / len(log_weights)


def normalised(log_weights: Tensor) -> Tensor:
    """Weights (N,) with mean 1, in float32."""
    return (len(log_weights) * torch.softmax(log_weights, 0)).float()
