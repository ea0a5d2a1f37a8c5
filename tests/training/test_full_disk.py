"""A real disk that fills up in the middle of a run."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_resume import changed, history, run_until

from ebmscale.config import RunConfig
from ebmscale.errors import StorageError
from ebmscale.model.run_folder import run_storage
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.loop import train
from ebmscale.training.metrics import METRICS_FILE
from ebmscale.training.stop import StopSignal
from ebmscale.training.view import View
from ebmscale.world import World


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "none", folder], check=False).returncode:
        pytest.skip("no file system of a given size: this account may not mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Filler(View):
    """Fills the disk once the first checkpoint exists, and perhaps clears it again 640 samples later."""

    def __init__(self, disk: Path, store: CheckpointStore, clear: bool):
        super().__init__(quiet=True)
        self.file, self.store, self.clear, self.filled_at = disk / "filler", store, clear, 0

    def batch(self, run: Any, batch: Any) -> None:
        if not self.filled_at and self.store.finished():
            self.filled_at = batch.start
            with self.file.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)) == 4096:
                        pass
                except OSError:
                    pass
        elif self.clear and self.filled_at and batch.start > self.filled_at + 640:
            self.file.unlink(missing_ok=True)


def test_a_full_disk_ends_the_run_with_its_checkpoint_intact(tiny: RunConfig, disk: Path) -> None:
    config = changed(
        tiny,
        storage={"url": str(disk)},
        checkpoint={"every_samples": 320, "retry_s": 2.0},
        train={"max_samples": 10**6},
    )
    store = CheckpointStore(run_storage(config))
    view = Filler(disk, store, clear=False)
    with pytest.raises(StorageError, match=r"No space left on device.*is intact, and the same command goes on"):
        train(config, view, World.alone(), StopSignal())
    view.file.unlink()
    position = store.newest(lambda saved: saved.verify() or saved.samples_seen)
    assert position is not None
    run_until(changed(config, train={"max_samples": position + 320}))


def test_a_disk_that_is_cleared_in_time_costs_nothing(tiny: RunConfig, disk: Path) -> None:
    straight = changed(tiny, run={"name": "straight"}, checkpoint={"every_samples": 320})
    run_until(straight)
    config = changed(straight, storage={"url": str(disk)})
    view = Filler(disk, CheckpointStore(run_storage(config)), clear=True)
    train(config, view, World.alone(), StopSignal())
    assert view.filled_at
    assert history(config, METRICS_FILE) == history(straight, METRICS_FILE)  # lines were held, none lost or torn
