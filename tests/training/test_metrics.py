import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ebmscale.errors import LostRunError, StorageError
from ebmscale.storage import Storage
from ebmscale.training import metrics
from ebmscale.training.metrics import METRICS_FILE, MeanMeter, PartTimer, RunLog, flatten, read_lines
from ebmscale.world import World


def test_means_are_weighted_and_start_anew() -> None:
    meter = MeanMeter()
    meter.add("a", torch.tensor(1.0), 3)
    meter.add("a", 5.0, 1)
    meter.add("b", 2)
    assert meter.reduce(World.alone()) == {"a": 2.0, "b": 2.0}
    assert meter.reduce(World.alone()) == {}


def test_a_meter_goes_on_from_its_state() -> None:
    values = torch.rand(10, generator=torch.Generator().manual_seed(0)).tolist()
    straight, first, second = MeanMeter(), MeanMeter(), MeanMeter()
    for value in values:
        straight.add("a", value)
    for value in values[:4]:
        first.add("a", value)
    second.load_values(json.loads(json.dumps(first.values())))
    for value in values[4:]:
        second.add("a", value)
    assert second.reduce(World.alone()) == straight.reduce(World.alone())


def test_time_between_runs_is_not_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = [100.0], [10.0]
    clock = SimpleNamespace(perf_counter=lambda: wall[0], process_time=lambda: cpu[0], monotonic=lambda: wall[0])
    monkeypatch.setattr(metrics, "time", clock)
    timer = PartTimer(torch.device("cpu"))
    with timer.part("data"):
        wall[0], cpu[0] = wall[0] + 2.0, cpu[0] + 1.0
    wall[0] += 1.0
    state = timer.values()
    wall[0], cpu[0] = wall[0] + 50.0, cpu[0] + 5.0
    resumed = PartTimer(torch.device("cpu"))
    resumed.load_values(state)
    wall[0], cpu[0] = wall[0] + 4.0, cpu[0] + 3.0
    taken = resumed.take()
    assert taken["data_s"] == pytest.approx(2.0)
    assert taken["total_s"] == pytest.approx(2.0 + 1.0 + 4.0)
    assert taken["cpu_s"] == pytest.approx(1.0 + 3.0)


@pytest.mark.parametrize("url", ["folder", "memory://metrics-test"])
def test_lines_beyond_the_checkpoint_and_a_torn_last_line_are_taken_out(url: str, tmp_path) -> None:
    storage = Storage.at(str(tmp_path / url) if url == "folder" else url)
    log = RunLog(storage, {METRICS_FILE: 0}, tensorboard=False)
    for position in (10, 20, 30):
        log.metrics(position, {"loss": float(position)})
    log.close()
    storage.append(METRICS_FILE, '{"samples_seen": 40, "lo')
    log = RunLog(storage, {METRICS_FILE: 20}, tensorboard=False)
    log.metrics(30, {"loss": float("nan")})
    log.close()
    assert read_lines(storage, METRICS_FILE) == [
        {"samples_seen": 10, "loss": 10.0},
        {"samples_seen": 20, "loss": 20.0},
        {"samples_seen": 30, "loss": None},
    ]


def test_tensorboard_holds_the_curves(tmp_path) -> None:
    log = RunLog(Storage.at(tmp_path), {METRICS_FILE: 0}, tensorboard=True)
    log.metrics(10, {"loss": 0.5, "time": {"data_s": 1.0}})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"loss" in content
    assert b"time/data_s" in content


def test_nested_numbers_are_flattened() -> None:
    assert dict(flatten({"a": 1, "b": {"c": 2.5, "d": "text"}, "e": True})) == {"a": 1.0, "b/c": 2.5}


def test_a_picture_is_kept_unless_the_storage_fails_or_the_run_is_another_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage, lost = Storage.at(tmp_path), []

    def check() -> None:
        if lost:
            raise LostRunError("another process writes it")

    log = RunLog(storage, {METRICS_FILE: 0}, False, check)
    log.keep("samples/a.png", b"first")
    lost.append(True)
    log.keep("samples/a.png", b"of another")
    assert storage.read_bytes("samples/a.png") == b"first"
    lost.clear()

    def refuse(storage: Storage, name: str, data: bytes) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(Storage, "publish", refuse)
    log.keep("samples/b.png", b"second")
    assert "samples/b.png cannot be written: the disk is full" in caplog.text
