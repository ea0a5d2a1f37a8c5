"""A search on Ray Tune of this machine, and what of it can be seen without a cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from ebmscale.config import RunConfig
from ebmscale.errors import DataError, LostRunError
from ebmscale.model.run_folder import run_storage
from ebmscale.search.driver import _pack, search
from ebmscale.search.space import parse_space
from ebmscale.search.trial import SearchStore
from ebmscale.search.tuner import make_stop_rule
from ebmscale.storage import Storage
from ebmscale.training import claim
from ebmscale.training.owner import Lease
from tests.conftest import PATIENCE_S
from tests.runtime.local_cluster import ROOT
from tests.search.conftest import make

SPACE = """
searcher: grid
objectives: [{metric: held_out_mse, direction: min}]
overrides: {guard.max_skips: 1, guard.max_rollbacks: 0}
space:
  data.validation_fraction: {choice: [0.2, 1.0e-3]}
  train.generator.rate: {choice: [3.0e-3, 1.0e+30], when: {data.validation_fraction: 0.2}}
"""


TRY_ALL = """
import json, sys
from tests.program import run_here
config, *spaces = sys.argv[1:]
print(json.dumps([run_here("tune", config, "--space", space, "train.max_samples=320") for space in spaces]))
"""


def tune(folder: Path, text: str, space: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(text)
    (folder / "space.yaml").write_text(space)
    words = ["tune", str(folder / "config.yaml"), "--space", str(folder / "space.yaml"), "train.max_samples=320"]
    return subprocess.run(
        [sys.executable, "-m", "ebmscale", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.ray
def test_trials_that_diverge_or_err_are_told_with_their_reasons_and_end_nothing(tiny_text: str, tmp_path: Path) -> None:
    done = tune(tmp_path, tiny_text, SPACE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    store = SearchStore(Storage.at(tmp_path / "runs" / "tune-tiny"))
    records = store.records()
    assert {n: record.status for n, record in records.items()} == {
        0: "finished", 1: "failed", 2: "failed",
    }  # fmt: skip
    assert "Training diverged" in records[1].reason
    assert "held-out samples, too few to decide on" in records[2].reason
    for number in (1, 2):
        assert f"trial {number} failed: {records[number].reason}" in done.stdout
    assert records[0].reports[-1]["samples_seen"] == 320
    assert {"best.yaml", "search.html", "trials.csv", "trials.parquet"} <= set(store.storage.list())


def test_what_cannot_be_searched_is_refused_before_ray_is_imported(tiny_text: str, tmp_path: Path) -> None:
    """One process tries all of it, because a process takes seconds to start."""
    refused = [
        (SPACE.replace("held_out_mse", "held_out_mess"), "nothing reports held_out_mess; did you mean held_out_mse?"),
        (SPACE.replace("[0.2, 1.0e-3]", "[]"), "the choice is empty"),
        (SPACE.replace("data.validation_fraction", "data.validation_part"), "unknown key data.validation_part"),
    ]
    (tmp_path / "ray.py").write_text("raise SystemExit('ray was imported')")
    (tmp_path / "config.yaml").write_text(tiny_text)
    files = []
    for number, (space, _) in enumerate(refused):
        files.append(tmp_path / f"space-{number}.yaml")
        files[-1].write_text(space)
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL, str(tmp_path / "config.yaml"), *map(str, files)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (code, _, errors), (_, words) in zip(json.loads(done.stdout), refused, strict=True):
        assert code == 2
        assert words in errors
    assert not (tmp_path / "runs").exists()


def asha(**changes: Any) -> Any:
    config, space = make(scheduler="asha", asha={"first_samples": 1000, "reduction": 2}, **changes)
    return make_stop_rule(space, config)


REPORTS = [
    *((0, 1000, 0.3), (1, 1000, 0.2), (2, 1000, 0.5), (0, 2000, 0.25)),
    *((3, 1000, 0.1), (1, 2000, 0.4), (3, 2000, 0.05)),
]


@pytest.mark.parametrize("cut", range(len(REPORTS) + 1))
def test_halving_goes_on_as_if_nothing_had_happened(cut: int) -> None:
    """A judge that is told of earlier reports, trial by trial as records lie, says what one that heard them says."""
    straight = asha()
    verdicts = [straight(*report) for report in REPORTS]
    again = asha()
    for report in sorted(REPORTS[:cut]):
        again(*report)
    assert [again(*report) for report in REPORTS[cut:]] == verdicts[cut:]
    assert verdicts == [False, False, True, False, False, True, False]


def test_without_asha_nobody_is_stopped() -> None:
    config, space = make()
    assert not make_stop_rule(space, config)(0, 10**9, 1e9)


def test_a_search_has_one_driver(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE_S", 0.05)
    space = parse_space(yaml.safe_load(SPACE))
    with Lease(run_storage(tiny), what="search") as lease:
        lease.take()
        with pytest.raises(LostRunError, match=r"The search .* is being written by process"):
            search(tiny, space, Console(quiet=True))
    assert not run_storage(tiny).exists("search.yaml")


def test_a_search_knows_its_data(tiny: RunConfig, tmp_path: Path) -> None:
    store = SearchStore(run_storage(tiny))
    _pack(tiny, store)
    _pack(tiny, store)
    np.save(tmp_path / "images.npy", np.zeros((900, 1, 8, 8), dtype=np.uint8))
    data = {"url": str(tmp_path / "other"), "format": "npy", "source": str(tmp_path / "images.npy")}
    other = tiny.model_copy(update={"data": tiny.data.model_copy(update=data)})
    with pytest.raises(DataError, match=r"The search .* was made with the data set digits"):
        _pack(other, store)
    accepted = {"data": other.data.model_copy(update={"accept_changed": True})}
    _pack(other.model_copy(update=accepted), store)
