"""What a search found, as files beside its trials: an HTML page, a table (CSV, parquet), the best configuration."""

import csv
import io
import json
import math
import platform
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined

from ebmscale.config import RunConfig, with_values
from ebmscale.evaluate import search_pictures as charts
from ebmscale.evaluate.pictures import data_uri
from ebmscale.evaluate.report import REPORT_FILE, Figure, Picture, _without_credentials
from ebmscale.search.ledger import short
from ebmscale.search.objectives import EVALUATED, best, pareto, score, scores
from ebmscale.search.space import Space
from ebmscale.search.trial import Record, SearchStore
from ebmscale.version import __version__

PAGE_FILE, CSV_FILE, PARQUET_FILE, BEST_FILE = "search.html", "trials.csv", "trials.parquet", "best.yaml"
LEAST_FOR_IMPORTANCE = 6  # trials with a value
NUM_TREES, NUM_SHUFFLES = 200, 30
SEED = 0


def write_search(store: SearchStore, config: RunConfig, space: Space, records: Sequence[Record]) -> list[str]:
    """Writes the files of a search.

    Args:
        store: where.
        config: that was varied, with the space's overrides.
        space: what was tried.
        records: of all trials.

    Returns:
        The addresses of those that were written; there is no best configuration where no trial has finished.
    """
    records = sorted(records, key=lambda record: record.number)
    rows = [table_row(space, record) for record in records]
    files = {CSV_FILE: _csv(rows), PARQUET_FILE: _parquet(rows)}
    winner = best(space, records)
    if winner is not None:
        files[BEST_FILE] = best_yaml(store, config, space, winner)
    files[PAGE_FILE] = _page(store, config, space, records, winner, files.get(BEST_FILE, b"")).encode()
    for name, data in files.items():
        store.storage.publish(name, data)
    return [store.storage.url_of(name) for name in (BEST_FILE, PAGE_FILE, CSV_FILE, PARQUET_FILE) if name in files]


def table_row(space: Space, record: Record) -> dict[str, Any]:
    """A trial as one row: its values, its objectives, and the last of every number that it reported."""
    last: dict[str, float] = {}
    for report in record.reports:
        last |= report
    values = {key: record.values.get(key) for key in space.space}
    return {
        "trial": record.number,
        "status": record.status,
        "reason": record.reason,
        **{k: json.dumps(v) if isinstance(v, list | tuple | dict) else v for k, v in values.items()},
        **{f"objective: {o.name}": score(o, record) for o in space.objectives},
        "samples_seen": record.samples_seen,
        "generations": len(record.origins) + 1,
        "attempts": len(record.attempts),
        "run": f"trials/{record.folder}",
        **{f"last: {name}": value for name, value in sorted(last.items()) if name != "samples_seen"},
        **record.measured,
    }


def best_yaml(store: SearchStore, config: RunConfig, space: Space, winner: Record) -> bytes:
    """The configuration of the best trial, as a run of its own, ready for `ebmscale train`."""
    found = ", ".join(f"{o.name} {short(score(o, winner))}" for o in space.objectives)
    made = with_values(config, winner.values, f"trial {winner.number}")
    run = made.run.model_copy(update={"name": f"{config.run.name}-best"})
    head = f"# Trial {winner.number} of {_without_credentials(store.storage.url)}: {found}\n"
    if winner.origins:
        head += "# Its values are those of its last generation; it began with others, and with other trials' weights.\n"
    return (head + made.model_copy(update={"run": run}).dump()).encode()


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, _columns(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 (slow to import)
    from pyarrow import parquet  # noqa: PLC0415

    columns = {}
    for name in _columns(rows):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else str(value) for value in values]
        columns[name] = values
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _page(
    store: SearchStore,
    config: RunConfig,
    space: Space,
    records: Sequence[Record],
    winner: Record | None,
    best_text: bytes,
) -> str:
    first = space.objectives[0]
    finished = [record if record.status == "finished" else None for record in records]
    values = [score(first, record) if record is not None else None for record in finished]
    good = charts.goodness(values, first.sign)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files(__package__) / PAGE_FILE).read_text(encoding="utf-8"))
    front = pareto(space, records) if len(space.objectives) > 1 else []
    return template.render(
        style=_style(),
        name=config.run.name,
        figures=_figures(space, records, winner),
        coordinates=_coordinates(space, records, good),
        pictures=_pictures(space, records, good, front),
        importance_note=_importance_note(space, records),
        front=[_row(space, record) for record in front],
        head=[*space.space, *(f"{o.name} ({o.direction})" for o in space.objectives)],
        rows=[_row(space, record) for record in records],
        best_text=best_text.decode(),
        space_text=yaml.safe_dump(space.dump(), sort_keys=False),
        address=_without_credentials(store.storage.url),
        versions={"ebmscale": __version__, "Python": platform.python_version()},
    )


def _style() -> str:
    """The report's."""
    text = (resources.files(__package__) / REPORT_FILE).read_text(encoding="utf-8")
    found = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    return found[1] if found else ""


def _figures(space: Space, records: Sequence[Record], winner: Record | None) -> list[Figure]:
    first = space.objectives[0]
    counts = Counter(record.status for record in records)
    note = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    figures = [
        Figure("Trials", str(len(records)), note),
        Figure("Searcher", space.searcher, f"scheduler {space.scheduler}, seed {space.seed}"),
    ]
    if winner is not None:
        figures.append(Figure(f"Best {first.name}", short(score(first, winner)), f"trial {winner.number}"))
    if space.default_first and space.searcher != "grid" and records:
        figures.append(
            Figure("The configuration's own", short(score(first, records[0])), f"trial 0, {records[0].status}")
        )
    seen = sum(record.samples_seen for record in records)
    figures.append(Figure("Samples trained", f"{seen:,}", "over all trials"))
    return figures


def _coordinates(space: Space, records: Sequence[Record], good: Sequence[float | None]) -> Picture:
    axes = []
    for key, parameter in space.space.items():
        choices = None if parameter.choice is None else [_name(value) for value in parameter.choice]
        values = [record.values.get(key) for record in records]
        shown = [None if v is None else _name(v) for v in values] if choices is not None else values
        axes.append(charts.Axis(key, shown, choices, parameter.loguniform is not None))
    for objective in space.objectives:
        axes.append(charts.Axis(objective.name, [score(objective, record) for record in records]))
    return Picture(
        _uri(charts.parallel_coordinates(axes, good)),
        "Parallel coordinates",
        "A line is a trial; finished ones from yellow (worst) to dark (best by the first objective), others grey. It "
        "has no point on the axis of a key that its trial does not have.",
    )


def _pictures(
    space: Space, records: Sequence[Record], good: Sequence[float | None], front: Sequence[Record]
) -> list[Picture]:
    found = []
    importances = importance(space, records)
    if importances:
        chart = charts.importance_chart(importances)
        found.append(Picture(_uri(chart), f"Importance for {space.objectives[0].name}"))
    for objective in space.objectives:
        lines = [
            ([r["samples_seen"] for r in record.reports if objective.metric in r],
             [r[objective.metric] for r in record.reports if objective.metric in r])
            for record in records
        ]  # fmt: skip
        if any(x for x, _ in lines):
            found.append(
                Picture(_uri(charts.courses_chart(lines, good, objective.metric)), f"Course of {objective.metric}")
            )
    if len(space.objectives) > 1:
        pairs = [(record.number, scores(space, record)[:2]) for record in records if record.status == "finished"]
        known = [(number, (pair[0], pair[1])) for number, pair in pairs if pair[0] is not None and pair[1] is not None]
        labels = (space.objectives[0].name, space.objectives[1].name)
        points, numbers = [pair for _, pair in known], [number for number, _ in known]
        chart = charts.pareto_chart(points, numbers, [record.number for record in front], labels)
        found.append(Picture(_uri(chart), "Pareto front", "of the first two objectives; numbers are trials"))
    return found


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
    if len(known) < LEAST_FOR_IMPORTANCE or space.scheduler == "pbt":
        return {}
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415 (slow to import)
    from sklearn.inspection import permutation_importance  # noqa: PLC0415

    table = np.array([[_place(space, key, record) for key in space.space] for record, _ in known])
    target = np.array([value for _, value in known])
    forest = RandomForestRegressor(NUM_TREES, random_state=SEED).fit(table, target)
    result = permutation_importance(forest, table, target, n_repeats=NUM_SHUFFLES, random_state=SEED)
    pairs = zip(result.importances_mean, result.importances_std, strict=True)
    return {key: (float(mean), float(sd)) for key, (mean, sd) in zip(space.space, pairs, strict=True)}


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


def _importance_note(space: Space, records: Sequence[Record]) -> str:
    at, known = comparable(space, records)
    if space.scheduler == "pbt":
        return "Values changed within trials, so no importances are given."
    if len(known) < LEAST_FOR_IMPORTANCE:
        return f"Importances need {LEAST_FOR_IMPORTANCE} trials that can be compared; there are {len(known)}."
    where = "at their end" if at is None else f"at {at:,} samples, which all have reached"
    return (
        f"Importances are those of a random forest on {len(known)} trials {where}: with few trials a hint and no more. "
        "Dotted lines pass axes of keys that a trial does not have."
    )


def _row(space: Space, record: Record) -> dict[str, Any]:
    values = [short(_name(record.values[key])) if key in record.values else "-" for key in space.space]
    return {
        "number": record.number,
        "status": record.status,
        "cells": [*values, *(short(value) for value in scores(space, record))],
        "samples": f"{record.samples_seen:,}",
        "attempts": len(record.attempts),
        "history": "; ".join(f"took over trial {o.donor} at {o.samples_seen:,}" for o in record.origins),
        "reason": record.reason,
    }


def _name(value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return value if isinstance(value, float) else str(value)


def _uri(svg: bytes) -> str:
    return data_uri(svg, "image/svg+xml")
