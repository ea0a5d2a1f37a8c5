"""Population-based training from records: which trial takes over which checkpoint, and with which values.

A trial is compared whenever it passes a multiple of the interval. The comparison takes place at the newest multiple
that another trial, running or done, has also reached. It uses the value of every trial at that place, so a trial that
is faster than the others is compared as well. A trial among the worst continues from the donor's checkpoint of that
place; its reports after that place are dropped.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ebmscale.config import RunConfig, mutable_keys
from ebmscale.errors import DamagedError, NotFoundError
from ebmscale.model.checkpoint import position_of
from ebmscale.search.objectives import objective_value
from ebmscale.search.parameter import Parameter
from ebmscale.search.space import Objective, PbtBlock, Space
from ebmscale.search.trial import Origin, TrialRecord
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore, copy_checkpoint

WAIT_S, WAIT_STEP_S = 60.0, 1.0

MUTABLE = tuple(mutable_keys(RunConfig))
"""Keys that may change while the checkpoint keeps its shapes and its meaning."""


class Exploit(NamedTuple):
    """The move of a trial to another trial's checkpoint, with new values."""

    origin: Origin
    values: dict[str, Any]


def interval(space: Space, config: RunConfig) -> int:
    """Samples between two comparisons."""
    return space.pbt.every_samples or max(config.train.max_samples // 10, 1)


def exploit(space: Space, config: RunConfig, number: int, records: Mapping[int, TrialRecord]) -> Exploit | None:
    """Decides after a trial's last report whether it moves; None if it continues unchanged.

    Args:
        space: of the values.
        config: of the search.
        number: of the trial.
        records: of all trials.
    """
    every, own = interval(space, config), records[number]
    if len(own.reports) < 2:
        return None
    now, before = own.samples_seen, int(own.reports[-2]["samples_seen"])
    if before // every == now // every or now >= config.train.max_samples:
        return None
    begun = own.origins[-1].samples_seen // every if own.origins else 0
    for mark in range(now // every, begun, -1):
        places = {n: place for n, other in records.items() if (place := _place(other, mark * every)) is not None}
        there = _values(space.objectives[0], places, records)
        if number in there and len(there) > 1:
            break
    else:
        return None
    order = sorted(there, key=lambda one: (there[one], one))
    num = _num_moved(space.pbt, len(order))
    if number not in order[-num:] or there[number] <= there[order[num - 1]]:
        return None
    rng = np.random.default_rng([space.seed, number, len(own.origins) + 1])
    donor = records[order[int(rng.integers(num))]]
    place = places[donor.number]
    origin = Origin(donor=donor.number, folder=donor.folder_at(place), samples_seen=place)
    return Exploit(origin, explore(space, donor.values, rng))


def _place(record: TrialRecord, samples_seen: int) -> int | None:
    """The place of a trial's first report at or after `samples_seen`; None if there is none or the trial failed."""
    reached = (int(report["samples_seen"]) for report in record.reports if report["samples_seen"] >= samples_seen)
    return next(reached, None) if record.status != "failed" else None


def _values(objective: Objective, places: Mapping[int, int], records: Mapping[int, TrialRecord]) -> dict[int, float]:
    """The values of trials at their places; smaller is better."""
    values = {number: objective_value(objective, records[number], until=place) for number, place in places.items()}
    return {number: objective.sign * value for number, value in values.items() if value is not None}


def _num_moved(pbt: PbtBlock, num: int) -> int:
    return max(min(math.ceil(num * pbt.quantile), num // 2), 1)


def explore(space: Space, values: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Returns values near these: PBT's perturbation."""

    def choose(key: str, parameter: Parameter) -> Any:
        if key not in values or rng.random() < space.pbt.resample:
            return parameter.at(float(rng.random()))
        step, value = int(rng.integers(2)), values[key]
        if parameter.choice is not None:
            place = parameter.place(value) or 0
            return parameter.choice[min(max(place + 2 * step - 1, 0), len(parameter.choice) - 1)]
        moved = value * (0.8, 1.2)[step]
        low, high = parameter.ends
        if parameter.integer is not None:
            moved = round(moved) if round(moved) != value else value + 2 * step - 1
            return min(max(int(moved), int(low)), int(high))
        return parameter.rounded(moved)

    return space.draw(choose)


def take_over(
    origin: Origin, donor: Storage, run: Storage, wait_s: float = WAIT_S, sleep: Callable[[float], None] = time.sleep
) -> int | None:
    """Copies the donor's checkpoint nearest to the recorded place into a run without checkpoints.

    Args:
        origin: the donor and the place.
        donor: the storage of the donor's run.
        run: the storage of the new run.
        wait_s: how long the donor may take to write the checkpoint.
        sleep: waits that many seconds.

    Returns:
        Its samples_seen; None if the donor has no valid checkpoint.
    """
    store = CheckpointStore(donor)
    while wait_s > 0 and not any(position_of(name) >= origin.samples_seen for name in store.finished()):
        sleep(WAIT_STEP_S)
        wait_s -= WAIT_STEP_S
    for name in sorted(store.finished(), key=lambda one: abs(position_of(one) - origin.samples_seen)):
        try:
            saved = store.open(name)
            saved.verify()
            copy_checkpoint(saved, donor, run)
        except (DamagedError, NotFoundError):
            continue
        return position_of(name)
    return None
