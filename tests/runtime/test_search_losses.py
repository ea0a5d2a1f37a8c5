"""Searches that lose their driver, a trial's process and a machine: the same command makes exactly what was asked."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebmscale.config import load_config
from ebmscale.search.objectives import ranked, score
from ebmscale.search.trial import SearchStore
from ebmscale.storage import Storage
from tests.conftest import TINY
from tests.runtime.conftest import SETTINGS
from tests.runtime.local_cluster import ROOT, LocalCluster, Running, config_file, running
from tests.s3_server import SECRET, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(3600)]

DONE = r"^trial \d+ (finished|is stopped)"
AGAIN = r"^trial \d+ runs on .* again, from"
TRIAL = "ray::ImplicitFunc"
PATIENCE_S = 600.0  # for one trial on a busy machine


@pytest.fixture
def two(make_cluster: Callable[..., LocalCluster]) -> Iterator[LocalCluster]:
    """Two nodes of one CPU that share this machine's network."""
    cluster = make_cluster(2, "--cpus", "1", "--network", "host")
    yield cluster
    cluster.down()


SPACE = """
searcher: optuna
scheduler: asha
num_trials: 12
objectives: [{metric: held_out_mse, direction: min}]
asha: {first_samples: 3200, reduction: 3}
space:
  train.generator.rate: {loguniform: [1.0e-3, 1.0e-2]}
  posterior.num_steps: {int: [2, 5]}
"""


def tune_command(config: Path, space: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "ebmscale", "tune", str(config), "--space", str(space), *overrides]


def interrupted_thrice(cluster: LocalCluster, command: list[str], **environment: str) -> tuple[list[str], Running]:
    """Runs a search to its end through the loss of its driver, a trial, and a machine; all lines, and the last run."""
    with running(cluster.command(*command), **environment) as first:
        for _ in range(2):
            first.wait_for(DONE, PATIENCE_S)
        first.process.kill()
        first.end()
    with running(cluster.command(*command), **environment) as last:
        last.wait_for(AGAIN, PATIENCE_S)
        last.wait_for(DONE, PATIENCE_S)
        os.kill(cluster.processes(TRIAL)[0], signal.SIGKILL)
        last.wait_for(r"^trial \d+ lost its process", PATIENCE_S)
        last.wait_for(AGAIN, PATIENCE_S)
        last.wait_for(DONE, PATIENCE_S)
        node = next(node for node in (1, 0) if node and cluster.processes(TRIAL, node))
        cluster.kill(node)
        last.wait_for(r"^trial \d+ lost its process", PATIENCE_S)
        cluster.add()
        assert last.end(1200) == 0, last.text
        return first.lines + last.lines, last


def check_twelve(store: SearchStore, lines: list[str]) -> None:
    """Twelve trials, each done once, with one report a place, whatever came between."""
    records = store.records()
    assert sorted(records) == list(range(12))
    assert {record.status for record in records.values()} <= {"finished", "stopped"}
    done = [int(found[1]) for line in lines if (found := re.match(r"trial (\d+) (?:finished|is stopped)", line))]
    assert len(done) == len(set(done)) >= 11  # the line of one may have died with the driver
    for record in records.values():
        seen = [report["samples_seen"] for report in record.reports]
        assert seen == sorted(set(seen))
    assert sum(len(record.attempts) - 1 for record in records.values()) >= 3


def test_a_search_of_the_digits_finds_better_than_the_preset_through_three_losses(
    two: LocalCluster, digits_url: str, tmp_path: Path
) -> None:
    config = ROOT / "configs" / "digits.yaml"
    words = (f"storage.url={tmp_path / 'runs'}", f"data.url={digits_url}")
    lines, _ = interrupted_thrice(two, tune_command(config, ROOT / "configs" / "tune" / "digits.yaml", *words))
    store = SearchStore(Storage.at(tmp_path / "runs" / "digits"))
    check_twelve(store, lines)
    _, space = store.load()
    records = store.records()
    best = ranked(space, records.values())[0]
    default = score(space.objectives[0], records[0])
    assert default is not None
    assert (score(space.objectives[0], best) or 0.0) < default
    loaded = load_config(tmp_path / "runs" / "digits" / "best.yaml")
    assert loaded.train.generator.rate == best.values["train.generator.rate"]
    with running(tune_command(config, ROOT / "configs" / "tune" / "digits.yaml", *words)) as again:
        assert again.end() == 0, again.text
        assert "12 done" in again.text


@pytest.mark.s3
def test_the_same_with_everything_in_s3(two: LocalCluster, server: S3Server, digits_url: str, tmp_path: Path) -> None:
    shards = Storage.at("s3://bucket/digits", endpoint_url=server.url)
    for path in Path(digits_url).iterdir():
        shards.publish(path.name, path.read_bytes())
    text = TINY.replace("DATA", "s3://bucket/digits")
    settings = SETTINGS | {"train": {"max_samples": 9600}}
    config = config_file(tmp_path, text, run={"name": "remote"}, storage={"url": "s3://bucket/searches"}, **settings)
    (tmp_path / "space.yaml").write_text(SPACE)
    lines, last = interrupted_thrice(two, tune_command(config, tmp_path / "space.yaml"))
    assert SECRET not in last.text
    store = SearchStore(Storage.at("s3://bucket/searches/remote", endpoint_url=server.url))
    check_twelve(store, lines)
    assert {"best.yaml", "search.html", "trials.csv", "trials.parquet"} <= set(store.storage.list())
