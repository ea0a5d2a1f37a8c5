"""What happens on one rank is agreed on by all: a signal, and a bad loss."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rank_worker import train_with_a_bad_batch

import ebmscale
from ebmscale.config import parse_config
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.metrics import GUARD_FILE, read_lines
from ebmscale.world import World
from tests.conftest import PATIENCE_S
from tests.ports import free_port

WORKER = str(Path(__file__).with_name("rank_worker.py"))


def start_ranks(*command: str, size: int = 2) -> list[subprocess.Popen[str]]:
    port = free_port()
    common = os.environ | {
        "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *command], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


@pytest.fixture
def config(tiny_text: str, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny_text + "engine: plain\n")
    return file


def test_a_signal_to_one_rank_saves_and_stops_them_all(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    ranks = start_ranks(
        "-m", "ebmscale", "train", str(config), "train.max_samples=10000000", "checkpoint.every_samples=320"
    )
    deadline = time.monotonic() + PATIENCE_S
    while not list(run.glob("checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline
        assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()
        time.sleep(0.1)
    ranks[1].send_signal(signal.SIGUSR1)
    errors = [rank.communicate(timeout=PATIENCE_S)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [130, 130], errors
    assert "Stopped by another worker; saved at" in errors[0]
    assert "Stopped by SIGUSR1; saved at" in errors[1]
    assert all(info.problem is None for info in CheckpointStore(Storage.at(run)).describe())


def test_a_bad_loss_on_one_rank_is_left_out_on_all(config: Path, tmp_path: Path) -> None:
    """Two ranks, of which one sees NaN, train what a single rank trains that leaves out the whole batch."""
    text = config.read_text().replace("max_samples: 3200", "max_samples: 640")
    file = tmp_path / "of2.yaml"
    file.write_text(text.replace("name: tiny", "name: of2"))
    ranks = start_ranks(WORKER, str(file), "480")
    train_with_a_bad_batch(parse_config(text.replace("name: tiny", "name: of1")), 480, World.alone())
    for rank in ranks:
        _, errors = rank.communicate(timeout=PATIENCE_S)
        assert rank.returncode == 0, errors
    found = {}
    for size in (1, 2):
        storage = Storage.at(tmp_path / "runs" / f"of{size}")
        (line,) = read_lines(storage, GUARD_FILE)
        assert line["action"] == "skipped"
        found[size] = (set(line["keys"]), ebmscale.load(storage.url).networks.state_dict())
    assert len(found[1][0]) == 32
    assert found[2][0] == found[1][0]
    for name, weight in found[1][1].items():
        torch.testing.assert_close(found[2][1][name], weight, rtol=0, atol=2e-4)
