"""Searches for tests: their commands and small configurations, and what must be true of every search's records."""

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from ebmscale.search.trial import SearchStore, TrialRecord
from ebmscale.storage import Storage
from tests.conftest import TINY
from tests.runtime.local_cluster import config_file

PROGRAM = (sys.executable, "-m", "ebmscale", "tune")
RATES = {"train.generator.rate": {"loguniform": [1e-3, 1e-2]}}
BY_ERROR = {"objectives": [{"metric": "held_out_mse", "direction": "min"}]}

BEGUN = r"^trial \d+ runs on .* \(process (\d+)\)"
DONE = r"^trial \d+ (finished|is stopped|failed)"
AGAIN = r"^trial \d+ runs on .* again, from"
LOST = r"^trial \d+ lost its process"
TRIAL = "ray::ImplicitFunc"
"""How the command line of a trial's process begins."""


def command(config: Path, space: Path, *overrides: str, program: tuple[str, ...] = PROGRAM) -> list[str]:
    return [*program, str(config), "--space", str(space), *overrides]


def space_file(folder: Path, **blocks: Any) -> Path:
    """A space that judges by the held-out error, as a file."""
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(BY_ERROR | {"space": RATES} | blocks))
    return path


def tiny_config(folder: Path, data_url: str, **blocks: Any) -> Path:
    """A configuration whose trials take seconds; the search lies at `folder/runs/tune-tiny`."""
    storage = {"url": str(folder / "runs")}
    return config_file(folder, TINY.replace("DATA", data_url), **{"storage": storage} | blocks)


def store_at(url: str | Path, **how: Any) -> SearchStore:
    return SearchStore(Storage.at(url, **how))


def check_complete(store: SearchStore, num: int, lines: list[str]) -> dict[int, TrialRecord]:
    """So many trials, each done once, with one report a place, whatever came between; their records."""
    records = store.records()
    assert sorted(records) == list(range(num))
    for record in records.values():
        assert record.status in ("finished", "stopped") or "Training diverged" in record.reason
    done = [line.split()[1] for line in lines if re.match(DONE, line)]
    assert len(done) == len(set(done)) >= num - 2  # the lines of two may have died with the driver
    for record in records.values():
        seen = [report["samples_seen"] for report in record.reports]
        assert seen == sorted(set(seen))
    assert {"best.yaml", "search.html", "trials.csv", "trials.parquet"} <= set(store.storage.list())
    return records
