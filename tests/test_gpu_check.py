"""`tools/gpu_check`: a part runs on the CPU, and a second run of the command measures what the first left out."""

import json
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ebmscale.version import commit
from tests.conftest import PATIENCE_S
from tools.gpu import command
from tools.gpu.parts import PARTS, take

ROOT = Path(__file__).parents[1]


def test_a_part_is_measured_once_and_its_record_says_where(tmp_path: Path) -> None:
    check = [sys.executable, str(ROOT / "tools" / "gpu_check"), "--small", "--parts", "fused_chain"]
    check += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "out" / "gpu_check.json"
    record = json.loads(file.read_text())["fused_chain"]
    assert (record["state"], record["small"], record["commit"]) == ("done", True, commit())
    assert record["machine"]["torch"] == torch.__version__
    assert record["values"]["K = 8, autograd, ms"] > record["values"]["K = 1, written out, ms"] > 0
    written = file.stat().st_mtime_ns
    arguments = ["--small", "--parts", "fused_chain", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    assert command.main(None, arguments) == 0
    assert file.stat().st_mtime_ns == written


FAKE = """
import json, signal, subprocess, sys, time
from pathlib import Path
out, part = (Path(sys.argv[sys.argv.index(name) + 1]) for name in ("--out", "--one"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
with (out / "begun").open("a") as file:
    file.write(f"{part}\\n")
record = {"part": str(part), "state": "running", "small": True, "values": {"figure": 3}}
file = out / "gpu_check.json"
others = json.loads(file.read_text()) if file.exists() else {}
if part.name == "tests":
    sys.exit(7)
file.write_text(json.dumps(others | {part.name: record}))
if part.name == "engines":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    (out / "child").write_text(str(child.pid))
    time.sleep(1000)
file.write_text(json.dumps(others | {part.name: record | {"state": "done"}}))
"""


def test_what_was_measured_is_kept_when_the_time_ends_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part fails at once, one starts a process and goes on for ever, one ends as it should."""
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE))
    monkeypatch.setattr(command, "SCRIPT", script)
    parts = [replace(part, limit_s=2.0 if part.name == "engines" else PATIENCE_S) for part in PARTS]
    monkeypatch.setattr(command, "PARTS", parts)
    given = ["--small", "--out", str(tmp_path), "--work", str(tmp_path)]
    assert command.main(None, [*given, "--parts", "tests,memory,engines", "--seconds", "4000"]) == 1
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {name: record["state"] for name, record in found.items()} == {
        "tests": "failed",
        "memory": "done",
        "engines": "out of time",
    }
    assert found["tests"]["reason"] == "it ended with exit code 7"
    assert found["engines"]["values"] == {"figure": 3}
    assert not is_running(int((tmp_path / "child").read_text()))
    (tmp_path / "begun").unlink()
    assert command.main(None, [*given, "--parts", "tests,memory,engines,cifar10", "--seconds", "4000"]) == 1
    assert (tmp_path / "begun").read_text().split() == ["cifar10", "tests", "engines"]  # what was not begun comes first


def is_running(process: int) -> bool:
    """Whether a process is there that is not about to be buried by its parent."""
    end = time.monotonic() + PATIENCE_S
    status = Path(f"/proc/{process}/status")
    while time.monotonic() < end:
        try:
            if "State:\tZ" in status.read_text():
                return False
        except OSError:
            return False
        time.sleep(0.1)
    return True


def test_without_a_gpu_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert command.main(None, ["--out", str(tmp_path), "--work", str(tmp_path)]) == 2
    assert "--small" in capsys.readouterr().err


def test_no_part_takes_three_minutes_and_all_fit_into_a_quarter_of_an_hour() -> None:
    assert max(part.limit_s for part in PARTS) < 180
    assert sum(part.limit_s for part in PARTS) < command.TOTAL_S


def test_a_smaller_file_has_the_first_training_images(tmp_path: Path) -> None:
    images = np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(4), x_test=images, y_test=np.arange(4))
    take(3, tmp_path / "a.npz", tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as found:
        assert {name: len(value) for name, value in found.items()} == {
            "x_train": 3, "y_train": 3, "x_test": 4, "y_test": 4,
        }  # fmt: skip
        assert np.array_equal(found["x_train"], images[:3])
