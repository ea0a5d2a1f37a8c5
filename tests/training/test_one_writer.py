"""A run has one writer: a second start, a takeover amid training, a kill, a folder that is deleted."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_resume import changed, history, positions, run_until

from ebmscale.config import RunConfig
from ebmscale.data.stream import Batch
from ebmscale.errors import LostRunError
from ebmscale.model.run_folder import run_storage
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training import claim
from ebmscale.training.loop import train
from ebmscale.training.metrics import METRICS_FILE
from ebmscale.training.run import Run
from ebmscale.training.update import BatchReport, train_batch
from ebmscale.training.view import View
from ebmscale.world import World


def train_with(config: RunConfig, position: int, action: Callable[[Run], None]) -> None:
    """Trains, and does something once, before the batch that begins at a position."""
    done = []

    def watched(run: Run, batch: Batch) -> BatchReport:
        if batch.start >= position and not done:
            done.append(batch.start)
            action(run)
        return train_batch(run, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ebmscale.training.loop.train_batch", watched)
        train(config, View(quiet=True), World.alone(), StopSignal())
    assert done


def content(storage: Storage) -> dict[str, bytes]:
    folder = storage.local_path()
    assert folder is not None
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_second_start_is_refused_and_the_first_goes_on(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE_S", 0.05)

    def again(run: Any) -> None:
        with pytest.raises(LostRunError, match=rf"is being written by process {os.getpid()} of .* one writer"):
            train(tiny, View(quiet=True), World.alone(), StopSignal())

    config = changed(tiny, train={"max_samples": 640}, checkpoint={"every_samples": 320})
    train_with(config, 320, again)
    assert [line["samples_seen"] for line in history(config, METRICS_FILE)] == [320, 640]
    assert positions(config) == [320, 640]


def test_a_writer_that_was_taken_over_from_stops_and_writes_nothing_more(tiny: RunConfig) -> None:
    found: dict[str, bytes] = {}

    def take_over(run: Any) -> None:
        run.saver.finish()
        other = claim.Claim.of_this_process(run.storage.url, None).model_copy(update={"host": "elsewhere"})
        run.storage.create("owner/000002.json", other.model_dump_json().encode())
        found.update(content(run.storage))

    config = changed(tiny, checkpoint={"every_samples": 320}, metrics={"tensorboard": True})
    with pytest.raises(LostRunError, match=r"was taken over by process \d+ of \w+ on elsewhere, since .*; this "):
        train_with(config, 640, take_over)
    after = content(run_storage(config))
    beat = "owner/000001.beat"  # one may have been under way
    assert {name: data for name, data in after.items() if name != beat} == {
        name: data for name, data in found.items() if name != beat
    }
    assert b"released" not in after.values()


def test_a_run_that_is_deleted_while_it_is_trained_ends_and_is_not_made_again(tiny: RunConfig, tmp_path: Path) -> None:
    def remove(run: Any) -> None:
        run.saver.finish()
        run.storage.local_path().rename(tmp_path / "gone")

    config = changed(tiny, checkpoint={"every_samples": 320}, metrics={"tensorboard": True})
    with pytest.raises(LostRunError, match="was deleted while this process was writing it; it stops"):
        train_with(config, 640, remove)
    assert LostRunError.exit_code == 4
    assert not run_storage(config).exists()


def test_a_kill_and_the_same_command_go_on_at_once(
    tiny: RunConfig, tiny_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claim, "PATIENCE_S", 0.05)
    file, config = tmp_path / "tiny.yaml", changed(tiny, checkpoint={"every_samples": 320})
    file.write_text(tiny_text)
    command = ["train", str(file), "train.max_samples=10000000", "checkpoint.every_samples=320"]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen([sys.executable, "-m", "ebmscale", *command], stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "runs").glob("tiny/checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    with pytest.raises(LostRunError, match=f"is being written by process {first.pid} of "):
        run_until(config)
    first.send_signal(signal.SIGKILL)
    first.wait()
    caplog.clear()
    newest = positions(config)[-1]
    run_until(changed(config, train={"max_samples": newest + 320}))
    assert positions(config)[-1] == newest + 320
    assert not re.search("waiting up to", caplog.text)
    lines = [line["samples_seen"] for line in history(config, METRICS_FILE)]
    assert lines == sorted(set(lines))
