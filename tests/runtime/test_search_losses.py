"""Searches that lose their driver, a trial's process and a machine: the same command makes exactly what was asked."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebmscale.config import load_config
from ebmscale.search.objectives import ranked, score
from ebmscale.search.trial import SearchStore
from ebmscale.storage import Storage
from tests.runtime.local_cluster import ROOT, LocalCluster, Running, running
from tests.s3_server import SECRET, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(1800)]

DONE = r"^trial \d+ (finished|is stopped)"
AGAIN = r"^trial \d+ runs on .* again, from"
TRIAL = "ray::ImplicitFunc"


@pytest.fixture
def two(make_cluster: Callable[..., LocalCluster]) -> Iterator[LocalCluster]:
    """Two nodes of one CPU that share this machine's network."""
    cluster = make_cluster(2, "--cpus", "1", "--network", "host")
    yield cluster
    cluster.down()


def space_file(folder: Path, **changes: Any) -> Path:
    """The shipped space of the digits, with some values changed."""
    tree = yaml.safe_load((ROOT / "configs" / "tune" / "digits.yaml").read_text())
    for key, value in changes.items():
        tree[key] = tree[key] | value if isinstance(value, dict) and key != "space" else value
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def tune_command(config: Path, space: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "ebmscale", "tune", str(config), "--space", str(space), *overrides]


def interrupted_thrice(cluster: LocalCluster, command: list[str], **environment: str) -> tuple[list[str], Running]:
    """Runs a search to its end through the loss of its driver, a trial, and a machine; all lines, and the last run."""
    with running(cluster.command(*command), **environment) as first:
        for _ in range(2):
            first.wait_for(DONE)
        first.process.kill()
        first.end()
    with running(cluster.command(*command), **environment) as last:
        last.wait_for(AGAIN)
        last.wait_for(DONE)
        os.kill(cluster.processes(TRIAL)[0], signal.SIGKILL)
        last.wait_for(r"^trial \d+ lost its process")
        last.wait_for(AGAIN)
        last.wait_for(DONE)
        node = next(node for node in (1, 0) if node and cluster.processes(TRIAL, node))
        cluster.kill(node)
        last.wait_for(r"^trial \d+ lost its process")
        cluster.add()
        assert last.end(600) == 0, last.text
        return first.lines + last.lines, last


def check_twelve(store: SearchStore, lines: list[str]) -> None:
    """Twelve trials, each done once, with one report a place, whatever came between."""
    records = store.records()
    assert sorted(records) == list(range(12))
    assert {record.status for record in records.values()} <= {"finished", "stopped"}
    done = [int(found[1]) for line in lines if (found := re.match(r"trial (\d+) (?:finished|is stopped)", line))]
    assert sorted(done) == list(range(12))
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
    space = space_file(tmp_path, overrides={"train.max_samples": 7500}, asha={"first_samples": 2500})
    where = ("storage.url=s3://bucket/searches", "data.url=s3://bucket/digits")
    lines, last = interrupted_thrice(two, tune_command(ROOT / "configs" / "digits.yaml", space, *where))
    assert SECRET not in last.text
    store = SearchStore(Storage.at("s3://bucket/searches/digits", endpoint_url=server.url))
    check_twelve(store, lines)
    assert {"best.yaml", "search.html", "trials.csv", "trials.parquet"} <= set(store.storage.list())
