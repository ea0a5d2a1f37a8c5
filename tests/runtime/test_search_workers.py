"""Searches whose trials have several workers each, placed by Ray Train."""

import sys
from pathlib import Path

import pytest

from ebmscale.config import load_config
from ebmscale.search.objectives import objective_value
from tests.runtime.local_cluster import running
from tests.runtime.search_runs import command, space_file, store_at, tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

PATIENCE_S = 3000.0
WORKERS = {"train": {"max_samples": 1280}, "ray": {"num_workers": 2, "cpus_per_worker": 0.5}}
DRIVER = (sys.executable, "-m", "tests.runtime.search_driver")


def test_the_cpus_of_twenty_trials_that_were_stopped_early_come_back(digits_url: str, tmp_path: Path) -> None:
    """From the best rate to the worst, so that all but the first trials are stopped."""
    rates = {"train.generator.rate": {"choice": [3e-3 * 0.7**place for place in range(23)]}}
    space = space_file(
        tmp_path, searcher="grid", scheduler="asha", asha={"first_samples": 320, "reduction": 4}, space=rates
    )
    with running(command(tiny_config(tmp_path, digits_url, **WORKERS), space, program=DRIVER)) as run:
        assert run.end(PATIENCE_S) == 0, run.text
    records = store_at(tmp_path / "runs" / "tune-tiny").records()
    assert len(records) == 23
    assert {record.status for record in records.values()} == {"finished", "stopped"}, run.text
    assert sum(record.status == "stopped" for record in records.values()) >= 20, run.text
    words = run.text.split("CPUs free ")[1].split()
    assert words[0] == words[2]


def test_a_population_of_trials_of_two_workers(digits_url: str, tmp_path: Path) -> None:
    """The second trial, which this seed gives a hopeless rate of 4e-6, takes over the first one's checkpoint."""
    space = space_file(
        tmp_path, scheduler="pbt", num_trials=2, seed=10, pbt={"every_samples": 320, "quantile": 0.5, "resample": 0.0},
        space={"train.generator.rate": {"loguniform": [1e-6, 1e-2]}},
    )  # fmt: skip
    config = tiny_config(tmp_path, digits_url, **WORKERS | {"train": {"max_samples": 2560}})
    with running(command(config, space)) as run:
        assert run.end(PATIENCE_S) == 0, run.text
    store = store_at(tmp_path / "runs" / "tune-tiny")
    records = store.records()
    assert [record.status for record in records.values()] == ["finished", "finished"], run.text
    assert records[1].origins[0].donor == 0
    objective = store.load()[1].objectives[0]
    ends = [objective_value(objective, record) for record in records.values()]
    assert ends[0] == pytest.approx(ends[1], rel=0.3)  # the heir was far behind before
    heir = load_config(tmp_path / "runs" / "tune-tiny" / "trials" / records[1].folder / "config.yaml")
    assert heir.train.generator.rate == records[1].values["train.generator.rate"]
