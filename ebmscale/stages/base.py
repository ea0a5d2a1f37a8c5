"""The base that the product chooses: a mixture of Gaussians, with as many components as held-out posteriors bear.

Shapes: N posteriors, M draws, Z coordinates, C components.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.density.bases import MomentBase
from ebmscale.density.mixture import Mixture
from ebmscale.density.mixture_fit import Components
from ebmscale.density.roots import factor, symmetric_root
from ebmscale.seeds import torch_generator
from ebmscale.stages.targets import Target

ROWS_A_COMPONENT = 24
"""Posteriors for every coordinate of every component of the first mixture that is tried."""
MOST_DOUBLINGS = 1
FIRST_STEPS, STEPS = 8, 6
"""Steps of expectation maximisation on some of the draws, from spread centres, and then on all of them."""
FIRST_ROWS = 250
"""Draws of the first steps, for every component."""
LEAST_BETTER = 0.02
"""Nats of held-out draws that more components, or one mixture more in the mean, must be worth."""
MOST_FITS = 8
"""Mixtures of one size in the mean."""


@dataclass(frozen=True)
class Tried:
    """A number of components that was tried.

    Attributes:
        num_components: C, of all mixtures in a mean.
        nats: mean log density of the draws that choose.
        seconds: of processor time.
    """

    num_components: int
    nats: float
    seconds: float


@dataclass(frozen=True)
class ChosenBase:
    """The base, and what was tried on the way."""

    base: MomentBase
    tried: tuple[Tried, ...]


class _Tries:
    """Bases that were fitted, in the coordinates that make the moments 0 and I, each with its held-out nats."""

    def __init__(self, train: Target, tune: Target, seed: int, symmetric: bool = False):
        self.generator = torch_generator(seed, "base")
        first = train.every(self.generator)
        mean, covariance = first.double().mean(0), torch.cov(first.double().T).view(first.shape[1], first.shape[1])
        root = symmetric_root(covariance) if symmetric else factor(covariance)
        self.plain = MomentBase(mean.float(), root.float())
        self.count = len(first) // train.repeats
        self.found: list[tuple[Tried, MomentBase]] = []
        self._train, self._held_out = train, tune.every(self.generator)

    def attempt(self, size: int) -> Tried:
        """Fits so many components."""
        start = time.process_time()
        base = self.plain if size == 1 else self._on_plain([self._fitted(size)])
        return self._judged(size, base, start)

    def average(self, most: int, may_take: Callable[[float], bool] = lambda seconds: True) -> None:
        """Fits more mixtures of the best size, each from other centres, while their mean gets likelier.

        Args:
            most: mixtures in the mean.
            may_take: whether there are so many seconds left.
        """
        best, base = self.best()
        size = best.num_components
        fits = [base.inside.components] if base.inside is not None else []
        while 0 < len(fits) < most and may_take(best.seconds):
            start, before = time.process_time(), best.nats
            fits.append(self._fitted(size))
            best = self._judged(size * len(fits), self._on_plain(fits), start)
            if best.nats < before + LEAST_BETTER:
                break

    def _judged(self, size: int, base: MomentBase, start: float) -> Tried:
        nats = float(base.log_density(self._held_out).double().mean())
        self.found.append((Tried(size, nats, time.process_time() - start), base))
        return self.found[-1][0]

    def _on_plain(self, fits: Sequence[Components]) -> MomentBase:
        return MomentBase(self.plain.mean, self.plain.cholesky, Mixture.mean_of(fits))

    def _fitted(self, size: int) -> Components:
        """A mixture inside the plain base's coordinates."""
        rows = self._drawn()
        rows = rows[torch.randperm(len(rows), generator=self.generator)[: FIRST_ROWS * size]]
        mixture = Mixture.fitted(rows, size, self.generator, num_steps=FIRST_STEPS, axes=self.plain.axes())
        for _ in range(STEPS):
            mixture = mixture.improved(self._drawn())
        return mixture.components

    def _drawn(self) -> Tensor:
        """One draw of every posterior, in the plain base's coordinates."""
        z = self._train.every(self.generator)
        return self.plain.coordinates(z[: self.count])

    def best(self) -> tuple[Tried, MomentBase]:
        """The base under which held-out draws are likeliest."""
        return max(self.found, key=lambda pair: pair[0].nats)


def choose_among(
    train: Target, tune: Target, sizes: Sequence[int], seed: int, symmetric: bool = False, fits: int = 1
) -> ChosenBase:
    """The mixture of one of these sizes under which held-out draws are likeliest, or a mean of such mixtures.

    The sizes are tried in their order, up to the first that is worse than the one before.

    Args:
        train: what the mixtures are fitted to.
        tune: what chooses.
        sizes: numbers of components, rising.
        seed: of draws and centres.
        symmetric: see `MomentBase.of_posteriors`.
        fits: mixtures of the best size whose mean is taken, at most.

    Raises:
        ValueError: the covariance of the draws is not positive definite.
    """
    tries, before = _Tries(train, tune, seed, symmetric), -math.inf
    for size in sizes:
        nats = tries.attempt(size).nats
        if not nats > before:
            break
        before = nats
    tries.average(fits)
    return ChosenBase(tries.best()[1], tuple(pair[0] for pair in tries.found))


def choose_base(train: Target, tune: Target, seed: int, seconds: float = math.inf) -> ChosenBase:
    """The mixture under which held-out draws are likeliest, with a number of components that the data suggest.

    Every step of expectation maximisation sees new draws of the posteriors, so a component cannot fit their noise.

    Args:
        train: what the mixture is fitted to.
        tune: what chooses the number of components.
        seed: of draws and centres.
        seconds: of processor time; no mixture is begun that would probably pass it.

    Raises:
        ValueError: the covariance of the draws is not positive definite.
    """
    began, tries = time.process_time(), _Tries(train, tune, seed)
    one, size = tries.attempt(1), max(tries.count // (ROWS_A_COMPONENT * tries.plain.dim), 2)
    found = tries.attempt(size)
    if found.nats > one.nats + LEAST_BETTER:
        for _ in range(MOST_DOUBLINGS):
            if time.process_time() - began + 2 * found.seconds > seconds:
                break
            before, size = found, 2 * size
            found = tries.attempt(size)
            if found.nats < before.nats + LEAST_BETTER:
                break
    else:
        while size > 2 and found.nats < one.nats + LEAST_BETTER:
            size = max(size // 4, 2)
            found = tries.attempt(size)
    tries.average(MOST_FITS, lambda one_s: time.process_time() - began + one_s <= seconds)
    best, base = tries.best()
    chosen = base if best.nats > one.nats + LEAST_BETTER else tries.plain
    return ChosenBase(chosen, tuple(pair[0] for pair in tries.found))
