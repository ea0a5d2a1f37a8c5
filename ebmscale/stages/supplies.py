"""Supplies of negatives: samples of p_{k-1}, exact or with weights, for training and for judging.

Shapes: B rows, C candidates of a row, Z coordinates.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ebmscale.density.moves import Noise
from ebmscale.density.prior import Base, RatioSequence
from ebmscale.density.resampling import resample_systematically
from ebmscale.model.sampler import total
from ebmscale.stages.draws import Draws

ROWS_AT_ONCE = 8192
REMEMBERED = 16
"""Updates whose negatives are looked at once more as used ones."""


class Negatives(NamedTuple):
    """Samples z (B, Z) with weights (B,) such that the mean of w h(z) is, on average, the mean of h under p_{k-1}."""

    z: Tensor
    weights: Tensor


class Supply(Protocol):
    """Where a stage's negatives come from.

    Attributes:
        kind: what it is called in records.
        passes: evaluations of one network that one negative costs.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def passes(self) -> float: ...  # noqa: D102

    def draw(self, num: int, position: int) -> Negatives:
        """This worker's share of `num` negatives for the update `position`."""
        ...

    def fresh(self, num: int, position: int) -> Negatives:
        """This worker's share of about `num` negatives that no update has seen or will see."""
        ...

    def used(self, batch: int, position: int) -> Negatives:
        """This worker's negatives as the last updates before `position` saw them, `batch` an update."""
        ...


class ExactDraws:
    """Draws of the base itself, of which none is used twice."""

    kind, passes = "exact draws", 0.0

    def __init__(self, base: Base, draws: Draws, name: str):
        self._base, self._draws, self._name = base, draws, name

    def draw(self, num: int, position: int) -> Negatives:
        """See `Supply.draw`."""
        return self._drawn(self._draws.noise(num, f"{self._name}/train", position))

    def fresh(self, num: int, position: int) -> Negatives:
        """See `Supply.fresh`."""
        return self._drawn(self._draws.noise(num, f"{self._name}/fresh", position))

    def used(self, batch: int, position: int) -> Negatives:
        """See `Supply.used`; what was drawn is drawn again."""
        return again(self.draw, batch, position)

    def _drawn(self, noise: Noise) -> Negatives:
        z = self._base.from_noise(noise.normal(self._base.dim))
        return Negatives(z, torch.ones(len(z), device=z.device))


class WeightedDraws:
    """Fresh draws of the base, weighted by the frozen ratios; none is used twice.

    Of a row's C candidates one is chosen in proportion to its weight w = e^(f_1 + ... + f_{k-1}) / Z_{k-1}, and weighs
    as much as the candidates' mean: the mean of w h is then exactly that of h under p_{k-1}, for any C, with no sum
    over rows. Z_{k-1} is that of the freeze.
    """

    kind = "weighted draws"

    def __init__(self, sequence: RatioSequence, log_z: float, candidates: int, draws: Draws, name: str):
        self._sequence, self._log_z, self._candidates = sequence, log_z, candidates
        self._draws, self._name = draws, name
        self.passes = float(candidates * sequence.num_stages)

    def draw(self, num: int, position: int) -> Negatives:
        """See `Supply.draw`."""
        return self._drawn(self._draws.noise(num, f"{self._name}/train", position))

    def fresh(self, num: int, position: int) -> Negatives:
        """See `Supply.fresh`."""
        parts = [
            self._drawn(self._draws.noise(min(ROWS_AT_ONCE, num - first), f"{self._name}/fresh-{first}", position))
            for first in range(0, num, ROWS_AT_ONCE)
        ]
        return Negatives(torch.cat([part.z for part in parts]), torch.cat([part.weights for part in parts]))

    def used(self, batch: int, position: int) -> Negatives:
        """See `Supply.used`; what was drawn is drawn again."""
        return again(self.draw, batch, position)

    @torch.no_grad()
    def _drawn(self, noise: Noise) -> Negatives:
        base = self._sequence.base
        candidates = base.from_noise(noise.normal(self._candidates, base.dim).flatten(0, 1))
        log_weights = (total(self._sequence, candidates).double() - self._log_z).view(-1, self._candidates)
        chosen, log_mean = choose(log_weights, noise.uniform())
        rows = torch.arange(len(chosen), device=chosen.device) * self._candidates + chosen
        return Negatives(candidates[rows], log_mean.exp().float())


def choose(log_weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row's candidates one, in proportion to e^log_weights (B, C): its place, and the log of the row's mean.

    Args:
        log_weights: (B, C), float64.
        uniform: (B,) in [0, 1).
    """
    ends = torch.softmax(log_weights, 1).cumsum(1)
    chosen = torch.searchsorted(ends, uniform.double()[:, None]).clamp(max=log_weights.shape[1] - 1)[:, 0]
    return chosen, log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def again(draw: Callable[[int, int], Negatives], batch: int, position: int) -> Negatives:
    """The negatives of up to `REMEMBERED` updates before `position`, drawn once more by `draw`."""
    found = [draw(batch, before) for before in range(max(position - REMEMBERED, 0), max(position, 1))]
    return Negatives(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def unweighted(values: Tensor, weights: Tensor) -> Tensor:
    """Values (N,) resampled in proportion to weights (N,)."""
    if bool((weights == weights[0]).all()):
        return values
    placed = torch.full((1,), 0.5, device=weights.device)
    return values[resample_systematically(weights.double().log()[None], placed, len(values))[0]]
