"""A disk that fills up in the middle of a run."""

import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_resume import changed, final_files, history, run_until

from ebmscale.config import RunConfig
from ebmscale.errors import StorageError
from ebmscale.model.run_folder import run_storage
from ebmscale.report.run_report import write_report
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.loop import train
from ebmscale.training.metrics import EVENTS_FILE, METRICS_FILE
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

    def batch(self, batch: Any) -> None:
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
    with pytest.raises(StorageError, match=r"No space left on device.*is intact, and the same command resumes"):
        train(config, view, World.alone(), StopSignal())
    view.file.unlink()
    position = store.newest(lambda saved: saved.verify() or saved.samples_seen)
    assert position is not None
    run_until(changed(config, train={"max_samples": position + 320}))


def test_a_disk_that_is_cleared_in_time_costs_nothing(tiny: RunConfig, undisturbed: RunConfig, disk: Path) -> None:
    config = changed(tiny, storage={"url": str(disk)}, checkpoint={"every_samples": 320}, metrics={"tensorboard": True})
    view = Filler(disk, CheckpointStore(run_storage(config)), clear=True)
    train(config, view, World.alone(), StopSignal())
    assert view.filled_at
    assert history(config, METRICS_FILE) == history(undisturbed, METRICS_FILE)  # lines were held, none lost or torn
    assert board_steps(disk / "tiny") == {line["samples_seen"] for line in history(config, METRICS_FILE)}


def board_steps(run: Path) -> set[int]:
    """The steps of a curve in a run's one file of TensorBoard, every record whole."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (file,) = (run / "tensorboard").iterdir()
    data, steps = file.read_bytes(), set()
    while data:
        (length, check) = struct.unpack_from("<QI", data)
        assert check == masked_crc32c(data[:8])
        content = data[12 : 12 + length]
        assert struct.unpack_from("<I", data, 12 + length)[0] == masked_crc32c(content)
        event = Event.FromString(content)
        steps |= {event.step for value in event.summary.value if value.tag == "train/mse"}
        data = data[16 + length :]
    return steps


class FullOnce:
    """A disk that refuses the first writes of every file of a run."""

    def __init__(self, patch: pytest.MonkeyPatch, refuse: Callable[[str], bool] = lambda path: True):
        self.refused: set[str] = set()
        for name in ("publish", "append", "create"):
            patch.setattr(Storage, name, self._instead_of(getattr(Storage, name), refuse))

    def _instead_of(self, method: Callable[..., None], refuse: Callable[[str], bool]) -> Callable[..., None]:
        def write(storage: Storage, path: str, data: bytes, **options: bool) -> None:
            kind = re.sub(r"\d{12}-[0-9a-f]{12}|(?<=tfevents).*|-\d{3}-[0-9a-f]{12}", "", path)
            if kind not in self.refused and not path.startswith(".ebmscale-probe") and refuse(path):
                self.refused.add(kind)
                raise StorageError("Cannot write (No space left on device).")
            method(storage, path, data, **options)

        return write


def test_every_writer_of_a_run_waits_for_a_disk_that_has_room_again(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    straight = changed(
        tiny,
        run={"name": "straight"},
        train={"max_samples": 960},
        stages={"min_samples": 160, "max_samples": 320, "settle_samples": 160},
        metrics={"tensorboard": True},
    )
    run_until(straight)
    config = changed(straight, run={"name": "tiny"})
    monkeypatch.setattr("ebmscale.training.checkpoint.FIRST_PAUSE_S", 0.01)
    with monkeypatch.context() as patch:
        full = FullOnce(patch)
        run_until(config)
        write_report(run_storage(config), retry_s=60)
    assert {
        "owner/000001.json", "owner/000001.beat", "config.yaml", "data.json", "metrics.jsonl", "events.jsonl",
        "tensorboard/events.out.tfevents", "checkpoints//generator-0000-000.safetensors", "checkpoints//state.json",
        "checkpoints//manifest.json", "checkpoints.json", "ratios/stage.safetensors", "samples.png", "report.html",
    } <= full.refused  # fmt: skip
    assert final_files(config) == final_files(straight)
    for name in (METRICS_FILE, EVENTS_FILE):
        assert history(config, name) == history(straight, name)
    folders = [run_storage(one).local_path() for one in (config, straight)]
    assert board_steps(folders[0]) == board_steps(folders[1])
    assert sum("TensorBoard" in line for line in caplog.messages) == 1


def test_tensorboard_that_is_lost_is_warned_of_once_and_ends_nothing(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append = Storage.append

    def refuse(storage: Storage, path: str, data: bytes) -> None:
        if path.startswith("tensorboard"):
            raise StorageError("Cannot write (Input/output error).")
        append(storage, path, data)

    monkeypatch.setattr(Storage, "append", refuse)
    monkeypatch.setattr("ebmscale.training.event_file.MOST_HELD", 100)
    config = changed(tiny, train={"max_samples": 640}, metrics={"tensorboard": True})
    run_until(config)
    assert len(history(config, METRICS_FILE)) == 2
    assert sum("TensorBoard" in line for line in caplog.messages) == 1
