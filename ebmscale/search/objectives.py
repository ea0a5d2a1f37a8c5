"""Values of the objectives of a trial, the best trials, and the Pareto front."""

import math
from collections.abc import Iterable, Sequence

from ebmscale.search.space import Objective, Space
from ebmscale.search.trial import TrialRecord

EVALUATED = "evaluate/"
"""Prefix of objectives that are measured on a finished run."""


def objective_value(objective: Objective, record: TrialRecord, until: float = math.inf) -> float | None:
    """The objective's value in a trial, from its reports up to `until` samples; None if none has a number."""
    if objective.metric.startswith(EVALUATED):
        value = record.measured.get(objective.metric)
        return None if value is None or math.isnan(value) else value
    found = [
        (report["samples_seen"], report[objective.metric])
        for report in record.reports
        if not math.isnan(report.get(objective.metric, math.nan)) and report["samples_seen"] <= until
    ]
    if objective.reach is not None:
        return next((seen for seen, value in found if objective.reached(value)), None)
    if not found:
        return None
    values = [value for _, value in found]
    return values[-1] if objective.over == "last" else min(values, key=lambda value: objective.sign * value)


def scores(space: Space, record: TrialRecord) -> list[float | None]:
    """The values of all objectives."""
    return [objective_value(objective, record) for objective in space.objectives]


def ranked(space: Space, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The finished trials that have a value of the first objective, best first."""
    first = space.objectives[0]
    known = [(objective_value(first, record), record) for record in records if record.status == "finished"]
    return [r for _, r in sorted(((first.sign * v, r) for v, r in known if v is not None), key=lambda pair: pair[0])]


def pareto(space: Space, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The finished trials that no other trial dominates."""
    known = [(record, scores(space, record)) for record in ranked(space, records)]
    signs = [objective.sign for objective in space.objectives]
    points = [
        (record, [sign * value for sign, value in zip(signs, values, strict=True) if value is not None])
        for record, values in known
        if None not in values
    ]
    return [record for record, point in points if not any(_dominates(other, point) for _, other in points)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a point (smaller is better) is at least as good in every objective and better in one."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def best(space: Space, records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best trial; with several objectives, the best of the Pareto front in the first one."""
    front = ranked(space, records) if len(space.objectives) == 1 else pareto(space, records)
    return front[0] if front else None
