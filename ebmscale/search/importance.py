"""Which keys of a space matter: permutation importances from the trials that can be compared."""

import math
from collections.abc import Sequence

import numpy as np

from ebmscale.search.objectives import EVALUATED, score
from ebmscale.search.space import Space
from ebmscale.search.trial import Record

LEAST_TRIALS = 6
NUM_TREES, NUM_SHUFFLES = 200, 30
SEED = 0


def comparable(space: Space, records: Sequence[Record]) -> tuple[int | None, list[tuple[Record, float]]]:
    """Trials with values of the first objective that can be compared, and the samples at which.

    Where a scheduler stops trials, that is the place that all have reached; None is the end of finished trials.
    """
    first = space.objectives[0]
    known = [record for record in records if record.status in ("finished", "stopped") and record.reports]
    place = min((record.samples_seen for record in known), default=0)
    if first.reach is not None or first.metric.startswith(EVALUATED) or all(r.status == "finished" for r in known):
        known, at = [record for record in known if record.status == "finished"], None
    else:
        at = place
    values = [(record, score(first, record, until=math.inf if at is None else at)) for record in known]
    return at, [(record, value) for record, value in values if value is not None]


def importance(space: Space, records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """How much the first objective depends on each key: permutation importance of a random forest (mean, sd).

    Of trials that can be compared; none where these are too few, or where values changed under way. A key that a
    trial does not have counts as a value below all others.
    """
    _, known = comparable(space, records)
    if len(known) < LEAST_TRIALS or space.scheduler == "pbt":
        return {}
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415 (slow to import)
    from sklearn.inspection import permutation_importance  # noqa: PLC0415

    table = np.array([[_place(space, key, record) for key in space.space] for record, _ in known])
    target = np.array([value for _, value in known])
    forest = RandomForestRegressor(NUM_TREES, random_state=SEED).fit(table, target)
    result = permutation_importance(forest, table, target, n_repeats=NUM_SHUFFLES, random_state=SEED)
    pairs = zip(result.importances_mean, result.importances_std, strict=True)
    return {key: (float(mean), float(sd)) for key, (mean, sd) in zip(space.space, pairs, strict=True)}


def importance_note(space: Space, records: Sequence[Record]) -> str:
    """What the page says of them."""
    at, known = comparable(space, records)
    if space.scheduler == "pbt":
        return "Values changed within trials, so no importances are given."
    if len(known) < LEAST_TRIALS:
        return f"Importances need {LEAST_TRIALS} trials that can be compared; there are {len(known)}."
    where = "at their end" if at is None else f"at {at:,} samples, which all have reached"
    return (
        f"Importances are those of a random forest on {len(known)} trials {where}: with few trials a hint and no more. "
        "Dotted lines pass axes of keys that a trial does not have."
    )


def _place(space: Space, key: str, record: Record) -> float:
    """A value as a number in [0, 1]; -1 where there is none."""
    if key not in record.values:
        return -1.0
    parameter, value = space.space[key], record.values[key]
    if parameter.choice is not None:
        return (parameter.place(value) or 0) / max(len(parameter.choice) - 1, 1)
    low, high = parameter.ends
    if parameter.loguniform is not None:
        return float(np.log(value / low) / np.log(high / low))
    return (value - low) / (high - low)
