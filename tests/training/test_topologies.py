"""A checkpoint goes from any number of workers, engine and ZeRO stage to any other, bit for bit.

Each leg opens the run as another one left it and saves it straight after loading. All of the state must be the same.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmscale.config import parse_config
from ebmscale.model.pieces import whole_spans
from ebmscale.model.run_folder import run_storage
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore

ENGINES = ["plain", "zero0", "zero1", "zero2", "zero3"]
LEGS = [(1, ["train", *ENGINES]), (4, ENGINES), (2, ENGINES[::-1]), (1, ["zero3", "plain"])]
ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("topology_worker.py")


def run_legs(config: Path) -> list[str]:
    """The names of all checkpoints, in the order of the legs."""
    done = subprocess.run(
        [sys.executable, str(WORKER), str(config), *(f"{size}={','.join(engines)}" for size, engines in LEGS)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [line.split()[1] for line in done.stdout.splitlines()]


def whole(storage: Storage, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """All tensors and plain values of a checkpoint, but for the meters, which belong to ranks."""
    saved = CheckpointStore(storage).open(name)
    saved.verify()
    tensors = {
        f"{stem}/{span.name}": values
        for stem in ("generator", "ratio", "chains")
        for span, values in saved.read(stem, whole_spans(saved.shapes(stem))).items()
    }
    values = {key: value for key, value in saved.values("state").items() if key not in ("meters", "world_size")}
    return tensors, values | {"ratios": saved.manifest.ratios, "shapes": saved.manifest.tensors}


def writers(storage: Storage, name: str, stem: str) -> set[str]:
    files = CheckpointStore(storage).open(name).manifest.files
    return {file.split("-")[1] for file in files if file.startswith(stem)}


@pytest.fixture(scope="module")
def saved(digits_url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, list[tuple[int, str, str]]]:
    """The run's storage, and of every save the number of workers, the engine and the checkpoint's name."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("topologies")
    text = TINY.replace("DATA", digits_url) + f"storage: {{url: {folder / 'runs'}}}\n"
    config = folder / "config.yaml"
    config.write_text(
        text.replace("max_samples: 3200", "max_samples: 1600").replace(
            "every_samples: 1600", "every_samples: 800, keep_last: 100"
        )
    )
    saves = [(size, engine) for size, engines in LEGS for engine in engines if engine != "train"]
    found = [(size, engine, name) for (size, engine), name in zip(saves, run_legs(config), strict=True)]
    return run_storage(parse_config(config.read_text())), found


@pytest.mark.deepspeed
def test_every_leg_saves_what_it_loaded(saved) -> None:
    storage, found = saved
    names = [name for _, _, name in found]
    assert len(set(names)) == len(names) == sum(len(engines) for _, engines in LEGS) - 1
    tensors, values = whole(storage, names[0])
    assert values["stages"]["stage"]["stage"] > 1  # stages have been frozen, and there are moments and chains
    assert values["samples_seen"] == 1600
    for size, engine, name in found[1:]:
        other_tensors, other_values = whole(storage, name)
        assert other_values == values, (size, engine)
        assert other_tensors.keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(other_tensors[key], value), (size, engine, key)


@pytest.mark.deepspeed
def test_all_ranks_write_and_none_writes_it_all(saved) -> None:
    storage, found = saved
    for size, engine, name in found:
        for stem in ("generator", "chains"):
            assert len(writers(storage, name, stem)) == size, (size, engine, stem)
