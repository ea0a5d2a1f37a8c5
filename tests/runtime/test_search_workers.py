"""Searches whose trials have several workers each, placed by Ray Train."""

import sys
from pathlib import Path

import pytest

from ebmscale.search.objectives import score
from ebmscale.search.trial import SearchStore
from ebmscale.storage import Storage
from tests.conftest import TINY
from tests.runtime.local_cluster import config_file, running

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(3600)]

PATIENCE_S = 3000.0
STOPPED_EARLY = """
searcher: random
scheduler: asha
num_trials: {num_trials}
objectives: [{{metric: held_out_mse, direction: min}}]
asha: {{first_samples: 320, reduction: 4}}
space:
  train.generator.rate: {{loguniform: [1.0e-6, 1.0e-2]}}
"""
POPULATION = """
searcher: random
scheduler: pbt
num_trials: 2
objectives: [{metric: held_out_mse, direction: min}]
pbt: {every_samples: 640, quantile: 0.5}
space:
  train.generator.rate: {loguniform: [1.0e-6, 1.0e-2]}
"""


def two_workers(folder: Path, digits_url: str, cpus: float) -> Path:
    text = TINY.replace("DATA", digits_url) + f"storage: {{url: {folder / 'runs'}}}\n"
    train = {"max_samples": 1280}
    return config_file(folder, text, run={"name": "two"}, train=train, ray={"num_workers": 2, "cpus_per_worker": cpus})


def test_the_cpus_of_twenty_trials_that_were_stopped_early_come_back(digits_url: str, tmp_path: Path) -> None:
    config = two_workers(tmp_path, digits_url, 0.5)
    (tmp_path / "space.yaml").write_text(STOPPED_EARLY.format(num_trials=24))
    command = [sys.executable, "-m", "tests.runtime.search_driver", str(config), str(tmp_path / "space.yaml")]
    with running(command) as run:
        assert run.end(PATIENCE_S) == 0, run.text
    records = SearchStore(Storage.at(tmp_path / "runs" / "two")).records()
    assert len(records) == 24
    assert sum(record.status == "stopped" for record in records.values()) >= 12, run.text
    words = run.text.split("CPUs free ")[1].split()
    assert words[0] == words[2]


def test_a_population_of_trials_of_two_workers(digits_url: str, tmp_path: Path) -> None:
    """The second trial, at a hopeless rate, takes over the first one's checkpoint."""
    config = two_workers(tmp_path, digits_url, 0.5)
    (tmp_path / "space.yaml").write_text(POPULATION)
    command = [sys.executable, "-m", "ebmscale", "tune", str(config), "--space", str(tmp_path / "space.yaml")]
    with running(command) as run:
        assert run.end(PATIENCE_S) == 0, run.text
    store = SearchStore(Storage.at(tmp_path / "runs" / "two"))
    records = store.records()
    assert [record.status for record in records.values()] == ["finished", "finished"], run.text
    [moved] = [record for record in records.values() if record.origins]
    donor = records[moved.origins[0].donor]
    _, space = store.load()
    ends = [score(space.objectives[0], record) for record in (donor, moved)]
    assert ends[0] == pytest.approx(ends[1], rel=0.3)  # the heir was far behind before
    assert store.run(moved.folder).exists("config.yaml")
