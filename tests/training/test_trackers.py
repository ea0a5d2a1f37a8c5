"""What TensorBoard, Weights & Biases and MLflow get of a run. Modules that record stand in for the last two."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import ebmscale
from ebmscale.config import RunConfig, with_values
from ebmscale.errors import ConfigError
from ebmscale.training import trackers
from ebmscale.training.sample_picture import COLUMNS, grid


def board_events(run: Path) -> list[Any]:
    """All events of all files: each record is a length, its checksum, the event, its checksum."""
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, Any]]]:
    """Stands in for both packages; what they were told, by package."""
    told: dict[str, list[tuple[str, Any]]] = {"wandb": [], "mlflow": []}

    def hear(package: str, name: str, answer: Any = None) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            told[package].append((name, (arguments, named)))
            return answer

        return call

    wandb: Any = ModuleType("wandb")
    run = SimpleNamespace(**{name: hear("wandb", name) for name in ("log", "define_metric", "finish")})
    wandb.init, wandb.Image = hear("wandb", "init", run), lambda picture: picture.shape
    mlflow: Any = ModuleType("mlflow")
    info = SimpleNamespace(info=SimpleNamespace(run_id="7"))
    mlflow.set_experiment = hear("mlflow", "set_experiment", SimpleNamespace(experiment_id="1"))
    mlflow.search_runs, mlflow.start_run = hear("mlflow", "search_runs", [info]), hear("mlflow", "start_run", info)
    for name in ("set_tags", "log_text", "log_metrics", "log_image", "end_run"):
        setattr(mlflow, name, hear("mlflow", name))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    return told


def test_all_three_get_the_numbers_of_the_files_and_samples_by_stage(
    tiny: RunConfig, packages: dict[str, list[tuple[str, Any]]], tmp_path: Path
) -> None:
    values = {"train.max_samples": 1600, "metrics.tensorboard": True, "metrics.trackers": ["wandb", "mlflow"]}
    run = ebmscale.train(with_values(tiny, values, "test"), quiet=True)
    metrics = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    events = run.events()
    freezes = {event["samples_seen"] for event in events if event.get("freeze")}
    assert freezes
    pictured = sorted(freezes | {1600})

    curves: dict[str, dict[int, float]] = {}
    for event in board_events(Path(run)):
        for value in event.summary.value:
            kind = "picture" if value.HasField("image") else "number"
            curves.setdefault(f"{kind} {value.tag}", {})[event.step] = value.simple_value
    assert sorted(curves["picture samples"]) == pictured
    for event in events:
        at = event["samples_seen"]
        assert curves["number evidence/held_out_mse"][at] == pytest.approx(event["held_out_mse"])
        assert curves["number evidence/kl_bound"][at] == pytest.approx(event["evidence"]["kl_bound"])
    assert sorted(curves["number train/mse"]) == [line["samples_seen"] for line in metrics]

    logged = [arguments[0] for name, (arguments, _) in packages["wandb"] if name == "log"]
    assert [one["samples_seen"] for one in logged if "train/mse" in one] == [line["samples_seen"] for line in metrics]
    assert [one["samples_seen"] for one in logged if "evidence/auc" in one] == [line["samples_seen"] for line in events]
    assert [one["samples_seen"] for one in logged if "samples" in one] == pictured
    assert [one["samples"] for one in logged if "samples" in one][-1] == (64, 64, 3)
    (init,) = [named for name, (_, named) in packages["wandb"] if name == "init"]
    assert init["config"]["train"]["max_samples"] == 1600
    assert (init["name"], init["resume"]) == ("tiny", "allow")
    assert packages["wandb"][-1][0] == "finish"

    steps = [named["step"] for name, (arguments, named) in packages["mlflow"] if name == "log_metrics"]
    assert steps == sorted([line["samples_seen"] for line in metrics] + [line["samples_seen"] for line in events])
    images = [arguments[1] for name, (arguments, _) in packages["mlflow"] if name == "log_image"]
    assert images == [f"samples/{position:012d}.png" for position in pictured]
    assert [named["run_id"] for name, (_, named) in packages["mlflow"] if name == "start_run"] == ["7"]
    assert packages["mlflow"][-1][0] == "end_run"


def test_a_tracker_that_fails_is_switched_off_and_the_run_goes_on(
    tiny: RunConfig, packages: dict[str, list[tuple[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError("no network")

    sys.modules["mlflow"].log_metrics = fail  # type: ignore[attr-defined]
    values = {"train.max_samples": 640, "metrics.trackers": ["mlflow", "wandb"]}
    run = ebmscale.train(with_values(tiny, values, "test"), quiet=True)
    assert run.load().samples_seen == 640
    assert [record.getMessage() for record in caplog.records if "switched off" in record.getMessage()] == [
        "mlflow is switched off for this run: no network"
    ]
    assert packages["wandb"][-1][0] == "finish"


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="has mlflow, which is not installed; install it: pip install mlflow"):
        ebmscale.train(with_values(tiny, {"metrics.trackers": ["mlflow"]}, "test"), quiet=True)
    assert not Path(tiny.storage.url).exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_in_rows(channels: int) -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((10, channels, 4, 5), dtype=np.uint8)
    picture = grid(images)
    assert picture.shape == (8, COLUMNS * 5, 3)
    assert picture[0, ::5, 0].tolist() == list(range(8))
    assert picture[4, ::5, 2].tolist() == [8, 9, 0, 0, 0, 0, 0, 0]
