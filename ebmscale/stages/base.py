"""The base that the product chooses: a mixture of Gaussians, with as many components as held-out posteriors bear.

Shapes: N posteriors, M draws, Z coordinates, C components.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.density.bases import Mixture, MomentBase
from ebmscale.seeds import torch_generator
from ebmscale.stages.targets import Target

ROWS_A_COMPONENT = 24
"""Posteriors for every coordinate of every component of the first mixture that is tried."""
MOST_DOUBLINGS = 3
FIRST_STEPS, STEPS = 8, 6
"""Steps of expectation maximisation on some of the draws, from spread centres, and then on all of them."""
FIRST_ROWS = 250
"""Draws of the first steps, for every component."""
LEAST_BETTER = 0.02
"""Nats of held-out draws that more components must be worth."""


@dataclass(frozen=True)
class Tried:
    """A number of components that was tried.

    Attributes:
        num_components: C.
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


def choose_base(train: Target, tune: Target, seed: int, seconds: float = float("inf")) -> ChosenBase:
    """The mixture under which held-out draws are likeliest, in the coordinates that make the moments 0 and I.

    Every step of expectation maximisation sees new draws of the posteriors, so a component cannot fit their noise.

    Args:
        train: what the mixture is fitted to.
        tune: what chooses the number of components.
        seed: of draws and centres.
        seconds: of processor time; no larger mixture is begun that would probably pass it.

    Raises:
        ValueError: the covariance of the draws is not positive definite.
    """
    generator, began = torch_generator(seed, "base"), time.process_time()
    first = train.every(generator)
    mean, covariance = first.double().mean(0), torch.cov(first.double().T).view(first.shape[1], first.shape[1])
    plain = MomentBase(mean.float(), torch.linalg.cholesky(covariance).float())
    held_out = tune.every(generator)
    count = len(first) // train.repeats
    tried: list[tuple[Tried, MomentBase]] = []

    def attempt(size: int) -> Tried:
        start = time.process_time()
        base = plain if size == 1 else _mixture(plain, train, size, count, generator)
        nats = float(base.log_density(held_out).double().mean())
        tried.append((Tried(size, nats, time.process_time() - start), base))
        return tried[-1][0]

    one, size = attempt(1), max(count // (ROWS_A_COMPONENT * plain.dim), 2)
    found = attempt(size)
    if found.nats > one.nats + LEAST_BETTER:
        for _ in range(MOST_DOUBLINGS):
            if time.process_time() - began + 2 * found.seconds > seconds:
                break
            before, size = found, 2 * size
            found = attempt(size)
            if found.nats < before.nats + LEAST_BETTER:
                break
    else:
        while size > 2 and found.nats < one.nats + LEAST_BETTER:
            size = max(size // 4, 2)
            found = attempt(size)
    best, base = max(tried, key=lambda pair: pair[0].nats)
    chosen = base if best.nats > one.nats + LEAST_BETTER else plain
    return ChosenBase(chosen, tuple(pair[0] for pair in tried))


def _mixture(plain: MomentBase, train: Target, size: int, count: int, generator: torch.Generator) -> MomentBase:
    """A mixture of `size` components inside the plain base's coordinates."""

    def drawn() -> Tensor:
        """One draw of every posterior."""
        z = train.every(generator)
        return plain.coordinates(z[:count])

    rows = drawn()
    rows = rows[torch.randperm(len(rows), generator=generator)[: FIRST_ROWS * size]]
    mixture = Mixture.fitted(rows, size, generator, num_steps=FIRST_STEPS)
    for _ in range(STEPS):
        mixture = mixture.improved(drawn())
    return MomentBase(plain.mean, plain.cholesky, mixture)
