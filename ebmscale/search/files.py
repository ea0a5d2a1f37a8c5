"""Writes the results of a search beside its trials: a table (CSV, parquet), the best configuration, an HTML page."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from ebmscale.config import RunConfig, with_values
from ebmscale.search.ledger import short
from ebmscale.search.objectives import best, objective_value
from ebmscale.search.page import PAGE_FILE, search_page
from ebmscale.search.space import Space
from ebmscale.search.trial import SEARCH_PREFIX, SearchStore, TrialRecord

CSV_FILE, PARQUET_FILE, BEST_FILE = "trials.csv", "trials.parquet", "best.yaml"


def write_search(store: SearchStore, config: RunConfig, space: Space, records: Sequence[TrialRecord]) -> list[str]:
    """Writes the files of a search.

    Args:
        store: of the search.
        config: that the search varied, with the space's overrides.
        space: of the values.
        records: of all trials.

    Returns:
        The addresses of the files; there is no best configuration if no trial has finished.
    """
    records = sorted(records, key=lambda record: record.number)
    rows = [table_row(space, record) for record in records]
    files = {CSV_FILE: _csv(rows), PARQUET_FILE: _parquet(rows)}
    winner = best(space, records)
    if winner is not None:
        files[BEST_FILE] = best_yaml(store, config, space, winner)
    best_text = files.get(BEST_FILE, b"").decode()
    files[PAGE_FILE] = search_page(store, config, space, records, winner, best_text).encode()
    for name, data in files.items():
        store.storage.publish(name, data)
    return [store.storage.url_of(name) for name in (BEST_FILE, PAGE_FILE, CSV_FILE, PARQUET_FILE) if name in files]


def table_row(space: Space, record: TrialRecord) -> dict[str, Any]:
    """A trial as one row: its values, its objectives, and the last value of every number that it reported."""
    last: dict[str, float] = {}
    for report in record.reports:
        last |= report
    values = {key: record.values.get(key) for key in space.space}
    return {
        "trial": record.number,
        "status": record.status,
        "reason": record.reason,
        **{k: json.dumps(v) if isinstance(v, list | tuple | dict) else v for k, v in values.items()},
        **{f"objective: {o.name}": objective_value(o, record) for o in space.objectives},
        "samples_seen": record.samples_seen,
        "generations": len(record.origins) + 1,
        "attempts": len(record.attempts),
        "run": f"trials/{record.folder}",
        **{f"last: {name}": value for name, value in sorted(last.items()) if name != "samples_seen"},
        **record.measured,
    }


def best_yaml(store: SearchStore, config: RunConfig, space: Space, winner: TrialRecord) -> bytes:
    """The configuration of the best trial, as a separate run for `ebmscale train`."""
    found = ", ".join(f"{o.name} {short(objective_value(o, winner))}" for o in space.objectives)
    made = with_values(config, winner.values, f"trial {winner.number}")
    run = made.run.model_copy(update={"name": f"{config.run.name.removeprefix(SEARCH_PREFIX)}-best"})
    head = f"# Trial {winner.number} of {store.storage.url}: {found}\n"
    if winner.origins:
        head += "# The values are those of its last generation; its weights come from other trials and values too.\n"
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
