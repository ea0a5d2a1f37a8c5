"""The README's comparison on the embedded digits, by the commands that it names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def distances(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The mean Frechet distance of every row over three seeds."""
    folder = tmp_path_factory.mktemp("compare-digits")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ebmscale = ["-m", "ebmscale"]
    for command in (
        [*ebmscale, "pack", "digits", "-", "data/digits"],
        [*ebmscale, "features", "train", "data/digits", "features/digits"],
        [*ebmscale, "compare", str(ROOT / "configs" / "compare" / "digits.yaml"), "--seeds", "3", "--jobs", "2"],
    ):
        done = subprocess.run(
            [sys.executable, *command], check=False, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (record,) = folder.glob("runs/compare-digits/comparison.json")
    values: dict[str, list[float]] = {}
    for result in json.loads(record.read_text())["results"]:
        (name,) = (key for key in result["measured"] if key.startswith("FD-"))
        values.setdefault(result["row"], []).append(result["measured"][name])
    assert all(len(of_row) == 3 for of_row in values.values())
    return {row: float(np.mean(of_row)) for row, of_row in values.items()}


def test_adaptive_is_ahead_of_every_other_method_on_the_digits(distances: dict[str, float]) -> None:
    assert min(distances, key=lambda row: distances[row]) == "adaptive", distances
