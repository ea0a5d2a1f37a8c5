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
def means(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The means over three seeds of every row's values, from the file as it is."""
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
    values: dict[str, list[dict[str, float]]] = {}
    for result in json.loads(record.read_text())["results"]:
        values.setdefault(result["row"], []).append(result["measured"])
    assert all(len(of_row) == 3 for of_row in values.values())
    return {row: {name: float(np.mean([one[name] for one in of])) for name in of[-1]} for row, of in values.items()}


@pytest.mark.parametrize("other", ["gaussian", "lebm", "nce"])
def test_the_stages_are_ahead_of_every_other_way_from_a_normal_prior(
    means: dict[str, dict[str, float]], other: str
) -> None:
    """In samples and in nats, from N(0, I) and at equal processor time."""
    stages, beside = means["adaptive"], means[other]
    assert stages["FD-digits-classifier"] < beside["FD-digits-classifier"]
    assert stages["nats"] > beside["nats"]


def test_rows_on_the_fitted_base_begin_ahead_of_those_from_a_normal_prior(means: dict[str, dict[str, float]]) -> None:
    for method in ("lebm", "nce", "adaptive"):
        assert means[f"{method}_mixture"]["nats"] > means[method]["nats"]
    assert means["mixture"]["FD-digits-classifier"] < means["gaussian"]["FD-digits-classifier"]


def test_the_generator_sets_a_ceiling_near_which_the_best_rows_are(means: dict[str, dict[str, float]]) -> None:
    """85 % of the way from the row `gaussian`, as the mean of distances."""
    start, best = means["gaussian"]["FD-digits-classifier"], min(of["FD-digits-classifier"] for of in means.values())
    ceiling = means["mixture"]["ceiling_FD-digits-classifier"]
    assert (start - best) / (start - ceiling) > 0.85
