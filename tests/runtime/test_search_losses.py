"""Searches that lose their driver, a trial's process and a machine: the same command makes exactly what was asked."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebmscale.config import load_config
from ebmscale.search.objectives import objective_value, ranked
from ebmscale.storage import Storage
from tests.runtime.local_cluster import ROOT, LocalCluster, running
from tests.runtime.search_runs import (
    AGAIN,
    BEGUN,
    DONE,
    LOST,
    TRIAL,
    check_complete,
    command,
    space_file,
    store_at,
    tiny_config,
)
from tests.s3_server import SECRET, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

PATIENCE_S = 600.0  # for one trial on a busy machine


@pytest.fixture
def two(make_cluster: Callable[..., LocalCluster]) -> Iterator[LocalCluster]:
    """A head, where no trial is placed, and two nodes of one CPU; they share this machine's network."""
    cluster = make_cluster(3, "--cpus", "1", "--head-cpus", "0", "--network", "host")
    yield cluster
    cluster.down()


def process_of(line: str) -> int:
    """That works on the trial of this line."""
    found = re.search(BEGUN, line)
    assert found is not None
    return int(found[1])


def interrupted_thrice(cluster: LocalCluster, words: list[str]) -> list[str]:
    """Runs a search to its end through the loss of its driver, a trial, and a machine; all that it says."""
    with running(cluster.command(*words)) as first:
        for _ in range(2):
            first.wait_for(DONE, PATIENCE_S)
        first.process.kill()
        first.end()
    with running(cluster.command(*words)) as last:
        last.wait_for(AGAIN, PATIENCE_S)
        last.wait_for(DONE, PATIENCE_S)
        os.kill(process_of(last.wait_for(BEGUN, PATIENCE_S)), signal.SIGKILL)
        last.wait_for(LOST, PATIENCE_S)
        last.wait_for(AGAIN, PATIENCE_S)
        process = process_of(last.wait_for(BEGUN, PATIENCE_S))
        [node] = [node for node in (1, 2) if process in cluster.processes(TRIAL, node)]
        cluster.kill(node)
        last.wait_for(LOST, PATIENCE_S)
        cluster.add()
        assert last.end(1200) == 0, last.text
        return first.lines + last.lines


def test_a_search_of_the_digits_finds_better_than_the_preset_through_three_losses(
    two: LocalCluster, digits_url: str, tmp_path: Path
) -> None:
    config, space_path = ROOT / "configs" / "digits.yaml", ROOT / "configs" / "tune" / "digits.yaml"
    words = command(config, space_path, f"storage.url={tmp_path / 'runs'}", f"data.url={digits_url}")
    lines = interrupted_thrice(two, words)
    store = store_at(tmp_path / "runs" / "tune-digits")
    records = check_complete(store, 12, lines)
    assert sum(len(record.attempts) - 1 for record in records.values()) >= 3
    _, space = store.load()
    best = ranked(space, records.values())[0]
    found, default = objective_value(space.objectives[0], best), objective_value(space.objectives[0], records[0])
    assert found is not None
    assert default is not None
    assert found < default
    assert (
        load_config(tmp_path / "runs" / "tune-digits" / "best.yaml").train.ratio.rate == best.values["train.ratio.rate"]
    )
    with running(words) as again:
        assert again.end() == 0, again.text
        assert "12 done" in again.text


@pytest.mark.s3
def test_the_same_with_everything_in_s3(two: LocalCluster, server: S3Server, digits_url: str, tmp_path: Path) -> None:
    shards = Storage.at("s3://bucket/digits", endpoint_url=server.url)
    for path in Path(digits_url).iterdir():
        shards.publish(path.name, path.read_bytes())
    config = tiny_config(
        tmp_path, "s3://bucket/digits", storage={"url": "s3://bucket/searches"}, train={"max_samples": 9600},
        checkpoint={"every_samples": 960},
    )  # fmt: skip
    asha = {"scheduler": "asha", "asha": {"first_samples": 3200, "reduction": 3}}
    lines = interrupted_thrice(two, command(config, space_file(tmp_path, searcher="optuna", num_trials=12, **asha)))
    assert SECRET not in "".join(lines)
    records = check_complete(store_at("s3://bucket/searches/tiny", endpoint_url=server.url), 12, lines)
    assert sum(len(record.attempts) - 1 for record in records.values()) >= 3


def test_a_killed_head_is_started_again_and_so_is_the_search(
    make_cluster: Callable[..., LocalCluster], digits_url: str, tmp_path: Path
) -> None:
    cluster = make_cluster(1, "--cpus", "2")
    words = command(tiny_config(tmp_path, digits_url), space_file(tmp_path, num_trials=5))
    with running(cluster.command(*words)) as first:
        first.wait_for(DONE)
        first.wait_for(BEGUN)
        cluster.kill(0)
        assert first.end() != 0, first.text
    cluster.restart_head()
    with running(cluster.command(*words)) as last:
        assert last.end() == 0, last.text
    cluster.down()
    check_complete(store_at(tmp_path / "runs" / "tune-tiny"), 5, first.lines + last.lines)
