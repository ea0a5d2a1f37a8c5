"""Training on a real Ray cluster of this machine: what two processes compute without Ray, whatever happens to it."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import resumed_from, undisturbed
from tests.runtime.local_cluster import LocalCluster, final_state, running, train_command

pytestmark = pytest.mark.ray

TWO = "ray.num_workers=2"
SHORT = {"train": {"max_samples": 8000}}
EARLY = r"^ +1,600 samples  +\d+/s"  # between the checkpoints at 960 and 1,920; a stage is frozen already


@pytest.fixture(scope="module")
def straight(digits_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of a short run on two processes with nothing in its way, and without Ray."""
    return undisturbed(digits_url, tmp_path_factory.mktemp("straight"), **SHORT)


def test_a_killed_worker_is_replaced_and_nothing_changes(
    pair: LocalCluster, make_config: Callable[..., Path], straight: dict[str, Any], tmp_path: Path
) -> None:
    with running(pair.command(*train_command(make_config("killed", **SHORT), TWO))) as run:
        run.wait_for(EARLY)
        first, second = pair.processes("ray::RayTrainWorker")
        assert os.getpriority(os.PRIO_PROCESS, first) == os.getpriority(os.PRIO_PROCESS, 0)
        os.kill(second, signal.SIGKILL)
        assert "rank" in run.wait_for("^lost: ")
        run.wait_for(f"{resumed_from(960)}.* 2 worker")
        assert run.end() == 0, run.text
        assert first not in pair.processes("ray::RayTrainWorker")
    assert final_state(tmp_path / "runs" / "killed") == straight
    assert (tmp_path / "runs" / "killed" / "report.html").exists()


def test_a_stop_saves_and_the_same_command_goes_on(
    pair: LocalCluster, make_config: Callable[..., Path], straight: dict[str, Any], tmp_path: Path
) -> None:
    command = pair.command(*train_command(make_config("stopped", **SHORT), TWO))
    with running(command) as run:
        run.wait_for(EARLY)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.text
        saved = re.search(r"stopped: Stopped by SIGTERM; saved at ([\d,]+) of", run.text)
        assert saved, run.text
        assert "Traceback" not in run.text
    with running(command) as run:
        run.wait_for(f"resumed at {saved[1]} samples")
        assert run.end() == 0, run.text
    assert final_state(tmp_path / "runs" / "stopped") == straight
