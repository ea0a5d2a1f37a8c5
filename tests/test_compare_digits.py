"""The README's comparison on the embedded digits, by the commands that it names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_adaptive_is_ahead_of_gaussian_and_nce_on_the_digits(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ebmscale = ["-m", "ebmscale"]
    for command in (
        [*ebmscale, "pack", "digits", "-", "data/digits"],
        [str(ROOT / "tools" / "feature_net.py"), "data/digits", "features/digits"],
        [*ebmscale, "compare", str(ROOT / "configs" / "compare" / "digits.yaml"), "--seeds", "3", "--jobs", "2"],
    ):
        done = subprocess.run(
            [sys.executable, *command], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (record,) = tmp_path.glob("runs/compare-digits/comparison.json")
    distances: dict[str, list[float]] = {}
    for result in json.loads(record.read_text())["results"]:
        (name,) = (key for key in result["measured"] if key.startswith("FD-"))
        distances.setdefault(result["row"], []).append(result["measured"][name])
    assert all(len(of_row) == 3 for of_row in distances.values())
    assert np.mean(distances["adaptive"]) < min(np.mean(distances["gaussian"]), np.mean(distances["nce"]))
