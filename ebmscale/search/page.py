"""The HTML page of a search: importances, the trials and their metrics, and the best trial."""

import json
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ebmscale.config import RunConfig
from ebmscale.documents import write_yaml
from ebmscale.report.pages import KeyFigure, Picture, render
from ebmscale.report.pictures import data_uri
from ebmscale.search import charts
from ebmscale.search.importance import importance, importance_note
from ebmscale.search.ledger import short
from ebmscale.search.objectives import objective_value, pareto, scores
from ebmscale.search.space import Space
from ebmscale.search.trial import SearchStore, TrialRecord
from ebmscale.version import __version__

PAGE_FILE = "search.html"


def search_page(
    store: SearchStore,
    config: RunConfig,
    space: Space,
    records: Sequence[TrialRecord],
    winner: TrialRecord | None,
    best_text: str,
) -> str:
    """Renders the page.

    Args:
        store: of the search.
        config: that the search varied.
        space: of the values.
        records: of all trials, by number.
        winner: the best trial.
        best_text: its configuration as YAML.
    """
    first = space.objectives[0]
    finished = [record if record.status == "finished" else None for record in records]
    values = [objective_value(first, record) if record is not None else None for record in finished]
    good = charts.goodness(values, first.sign)
    front = pareto(space, records) if len(space.objectives) > 1 else []
    return render(
        PAGE_FILE,
        name=config.run.name,
        figures=_figures(space, records, winner),
        coordinates=_coordinates(space, records, good),
        pictures=_pictures(space, records, good, front),
        importance_note=importance_note(space, records),
        front=[_row(space, record) for record in front],
        head=[*space.space, *(f"{o.name} ({o.direction})" for o in space.objectives)],
        rows=[_row(space, record) for record in records],
        best_text=best_text,
        space_text=write_yaml(space.dump()),
        address=store.storage.url,
        versions={"ebmscale": __version__, "Python": platform.python_version()},
    )


def _figures(space: Space, records: Sequence[TrialRecord], winner: TrialRecord | None) -> list[KeyFigure]:
    first = space.objectives[0]
    counts = Counter(record.status for record in records)
    note = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    figures = [
        KeyFigure("Trials", str(len(records)), note),
        KeyFigure("Searcher", space.searcher, f"scheduler {space.scheduler}, seed {space.seed}"),
    ]
    if winner is not None:
        figures.append(KeyFigure(f"Best {first.name}", short(objective_value(first, winner)), f"trial {winner.number}"))
    if space.has_default and records:
        figures.append(
            KeyFigure(
                "The configuration's own values",
                short(objective_value(first, records[0])),
                f"trial 0, {records[0].status}",
            )
        )
    seen = sum(record.samples_seen for record in records)
    figures.append(KeyFigure("Samples trained", f"{seen:,}", "over all trials"))
    return figures


def _coordinates(space: Space, records: Sequence[TrialRecord], good: Sequence[float | None]) -> Picture:
    axes = []
    for key, parameter in space.space.items():
        choices = None if parameter.choice is None else [_name(value) for value in parameter.choice]
        values = [record.values.get(key) for record in records]
        shown = [None if v is None else _name(v) for v in values] if choices is not None else values
        axes.append(charts.Axis(key, shown, choices, parameter.loguniform is not None))
    for objective in space.objectives:
        axes.append(charts.Axis(objective.name, [objective_value(objective, record) for record in records]))
    return Picture(
        _uri(charts.parallel_coordinates(axes, good)),
        "Parallel coordinates",
        "Each line is a trial. Finished trials go from yellow (worst in the first objective) to dark (best), others "
        "are grey. A line has no point on the axis of a key that the trial does not have.",
    )


def _pictures(
    space: Space, records: Sequence[TrialRecord], good: Sequence[float | None], front: Sequence[TrialRecord]
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
                Picture(_uri(charts.courses_chart(lines, good, objective.metric)), f"{objective.metric} over samples")
            )
    if len(space.objectives) > 1:
        pairs = [(record.number, scores(space, record)[:2]) for record in records if record.status == "finished"]
        known = [(number, (pair[0], pair[1])) for number, pair in pairs if pair[0] is not None and pair[1] is not None]
        labels = (space.objectives[0].name, space.objectives[1].name)
        points, numbers = [pair for _, pair in known], [number for number, _ in known]
        chart = charts.pareto_chart(points, numbers, [record.number for record in front], labels)
        found.append(
            Picture(_uri(chart), "Pareto front", "of the first two objectives; the numbers are those of the trials")
        )
    return found


def _row(space: Space, record: TrialRecord) -> dict[str, Any]:
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
