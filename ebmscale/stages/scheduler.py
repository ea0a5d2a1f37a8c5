"""When a stage ends and whether another begins: nats for the work of going on, and of a new stage.

Pure functions of the record, for a fit in memory and for a run whose target stands still. Work is counted in
evaluations of a network, so that a fit can be repeated; seconds matter only where there is a limit of them. Within a
stage the fall of the held-out loss below chance, D(t), says what going on is worth: its elasticity d log D / d log t is
the share of what the stage has gained that as much work again would add. What a new stage would add, as a share of this
one's, the last stages say; before there are two, how far the classifier is saturated does: a loss near 0 teaches
nothing more, and all that is left is left for the next stage.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ebmscale.stages.record import Paid
from ebmscale.stages.settings import StageSettings
from ebmscale.stages.trainer import EXPLORES

Curve = Sequence[tuple[float, float]]
"""Held-out losses of a stage, each after what was done by then: updates of a network, or samples of a run."""

CHANCE = 2 * math.log(2)
LEAST_PART = 0.002
"""A stage that adds less than this part of all nats is the last; the whole is not known so well."""
LEAST_ROOM = 0.3
"""No stage begins where there is time for less than this share of the one before."""
MOMENTS_SAY = 0.35
"""A held-out loss of the moments' ratio below this many nats: it is a stage of its own, in closed form."""
SATURATED = 0.02
"""A held-out loss below this many nats: the two sides are told apart, and more updates would only sharpen that."""
ROOM = 0.7
"""A new stage begins where there is time for this share of a stage as long as the one before."""
RISES, LEAST_RISE = 4, 0.002
"""So many held-out losses in a row, each above the one before and so many nats above the least: the stage memorises."""
MEMORISES = "the held-out loss rises"
FREEZING = 0.3
"""What gain, particles and evidence take, as a share of the training, where the record does not say yet."""


@dataclass(frozen=True)
class Verdict:
    """Whether to go on, and why."""

    goes_on: bool
    reason: str


@dataclass(frozen=True)
class Budget:
    """What is spent and allowed: processor seconds of a fit, samples of a run.

    Without a limit no decision depends on seconds, so that all is repeatable.

    Attributes:
        stage: spent on this stage so far.
        left: allowed from now on; infinite where there is no budget.
        freezing: what the end of a stage takes of the budget, as a share of its training.
    """

    stage: float
    left: float = math.inf
    freezing: float = FREEZING


class Bounds(NamedTuple):
    """How long a stage is at least and at most, in what its curve counts."""

    least: float
    most: float


def explore(curve: Curve, records: Sequence[Paid], budget: Budget, bounds: Bounds) -> Verdict:
    """Whether a stage goes on at its full rate; where not, the rate falls and then it ends."""
    done, loss = curve[-1]
    whole = (1 + budget.freezing) * budget.stage / EXPLORES
    going, other = min(elasticity(curve), room_left(loss)), next_share(records, loss)
    found = f"as much work again would add {going:.2f} of it, a new stage {other:.2f}"
    ends: list[tuple[bool, Verdict]] = [
        (budget.left <= whole - budget.stage, Verdict(False, "the time allowed leaves enough to settle")),
        (loss < SATURATED, Verdict(False, "the two sides are told apart")),
        (memorises(curve), Verdict(False, MEMORISES)),
        (done >= bounds.most * EXPLORES, Verdict(False, "the stage is as long as it may be")),
        (done < bounds.least * EXPLORES, Verdict(True, "the stage is young")),
        (going > other, Verdict(True, found)),
        (budget.left - whole + budget.stage < ROOM * whole, Verdict(True, "no time for another stage")),
    ]
    return next((verdict for holds, verdict in ends if holds), Verdict(False, found))


def elasticity(curve: Curve) -> float:
    """d log D / d log t over the last part of the curve, D the fall of the loss below chance.

    Of fewer than three losses it is 1: a young stage is often above chance at first. Later, while the loss is above
    chance, it is 1 if the loss falls, else 0.
    """
    known = [(done, CHANCE - loss) for done, loss in curve if done >= max(0.4 * curve[-1][0], 1)]
    if len(known) < 3:
        return 1.0
    if any(fall <= 0 for _, fall in known):
        return 1.0 if known[-1][1] > known[0][1] else 0.0
    x, y = ([math.log(value) for value in column] for column in zip(*known, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return max(slope, 0.0)


def room_left(loss: float) -> float:
    """The most that any further work could add to the fall of the loss below chance, as a share of it."""
    return loss / (CHANCE - loss) if loss < CHANCE else math.inf


def memorises(curve: Curve) -> bool:
    """Whether the held-out loss has risen for `RISES` measurements: the network learns what held-out samples lack."""
    losses = [loss for _, loss in curve]
    last = losses[-RISES - 1 :]
    rises = len(last) > RISES and all(before < after for before, after in pairwise(last))
    return rises and last[1] > min(losses) + LEAST_RISE


def next_share(records: Sequence[Paid], loss: float) -> float:
    """What a new stage is expected to add for the same work, as a share of what this one does."""
    kept = [one for one in records if one.gain > 0 and one.nats > 0 and one.work > 0]
    if len(kept) >= 2:
        before, last = kept[-2:]
        return min((last.nats / last.work) / (before.nats / before.work), 1.0)
    return max(1 - loss / CHANCE, 0.0) ** 2


def after(record: Paid, budget: Budget, settings: StageSettings, before: float = 0.0) -> Verdict:
    """Whether another stage begins after one that is done, on which `budget.stage` was spent.

    The stages before it added `before` nats.
    """
    said = f"KL bound {record.nats:.4f} +- {record.nats_error:.4f} nats at gain {record.gain:.2f}"
    if record.gain <= 0:
        return Verdict(False, f"{said}: no gain above 0 adds to the bound")
    if record.nats <= settings.significance * record.nats_error:
        return Verdict(
            False, f"{said}: not significant at {settings.significance:g} standard errors, so it is the last stage"
        )
    if record.stage >= settings.max_stages:
        return Verdict(False, f"{said}; the last of {settings.max_stages} stages")
    if record.nats < max(settings.min_gain, LEAST_PART * (before + record.nats)):
        return Verdict(False, f"{said}: little is left")
    if budget.left < LEAST_ROOM * budget.stage:
        return Verdict(False, f"{said}; the time allowed is used")
    return Verdict(True, said)
