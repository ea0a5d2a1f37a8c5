"""What a shell or a terminal sends to the whole process group stops a search and a run on Ray in an orderly way."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore
from tests.runtime.local_cluster import Running

SPACE = """
searcher: grid
objectives: [{metric: held_out_mse, direction: min}]
space: {train.generator.rate: {choice: [3.0e-3]}}
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["tune", "train"])
def test_a_signal_to_the_group_saves_and_ends_with_130(
    tiny_text: str, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    (tmp_path / "config.yaml").write_text(tiny_text)
    (tmp_path / "space.yaml").write_text(SPACE)
    words = [command, str(tmp_path / "config.yaml"), "train.max_samples=10000000", "checkpoint.every_samples=320"]
    words += ["--space", str(tmp_path / "space.yaml")] if command == "tune" else ["ray.num_workers=1"]
    running = Running([sys.executable, "-m", "ebmscale", *words])
    try:
        run = wait_for_checkpoint(tmp_path, running)
        os.killpg(running.process.pid, number)
        assert running.end() == 130, running.text
    finally:
        running.kill()
    assert "Traceback" not in running.text
    assert f"Stopped by {number.name}" in running.text
    assert all(info.problem is None for info in CheckpointStore(Storage.at(run)).describe())


def wait_for_checkpoint(folder: Path, running: Running) -> Path:
    """The folder of the run that has one."""
    while True:
        for manifest in folder.glob("runs/**/checkpoints/*/manifest.json"):
            return manifest.parents[2]
        assert running.process.poll() is None, running.text
        time.sleep(0.2)
