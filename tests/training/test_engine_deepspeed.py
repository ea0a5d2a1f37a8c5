"""ZeRO 0 to 3 equal the plain engine, on one and two processes, and take over each other's state.

All runs are made by `engine_worker.py`; the tests compare what they saved.
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_worker
import pytest
import torch
from engine_worker import PHASES, PLAIN, PLAIN_BF16, ZERO, ZERO_BF16, label

from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.deepspeed

# After 20 updates weights have moved by up to 0.05. In bf16 gradients have 8 bits, and so even the plain engine
# differs between one process and two, by about 1e-3.
TOLERANCE = {"fp32": 1e-5, "bf16": 4e-3}

FRESH = [label(s, size) for size in (1, 2) for s in (PLAIN, *ZERO, PLAIN_BF16, *ZERO_BF16)]
RESUMED = [f"{start}-to-{label(s, size)}" for size, _, resumed in PHASES.values() for start, s in resumed]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The folder with all runs."""
    folder = tmp_path_factory.mktemp("engines")
    script = str(Path(engine_worker.__file__))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(folder / "compiled")}
    environment["PYTHONPATH"] = os.pathsep.join(["."] + ([p] if (p := os.environ.get("PYTHONPATH")) else []))
    done = subprocess.run(
        [sys.executable, script, str(folder)],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == ""
    return folder


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.end")


def oracle(folder: Path, name: str) -> dict[str, Any]:
    """The plain engine in one process, on whole batches, in the same precision."""
    return load(folder, label(PLAIN_BF16 if "bf16" in name else PLAIN, 1))


def distance(left: dict[str, Any], right: dict[str, Any], kind: str = "") -> float:
    """The largest difference between the states of two runs."""
    assert all(a.keys() == b.keys() for a, b in zip(left["states"], right["states"], strict=True))
    return max(
        (a[name].double() - b[name].double()).abs().max().item()
        for a, b in zip(left["states"], right["states"], strict=True)
        for name in a
        if name.startswith(kind)
    )


@pytest.mark.parametrize("name", [*FRESH, *RESUMED])
def test_weights_equal_the_oracle(results, name):
    run, expected = load(results, name), oracle(results, name)
    assert distance(run, expected, "weights/") < TOLERANCE[name.split("-")[1]]
    assert [int(state["step"]) for state in run["states"]] == [engine_worker.NUM_UPDATES] * 2


@pytest.mark.parametrize("name", [n for n in [*FRESH, *RESUMED] if "bf16" not in n])
def test_norms_and_moments_equal_the_oracle(results, name):
    run, expected = load(results, name), oracle(results, name)
    assert distance(run, expected, "exp_avg") < TOLERANCE["fp32"]
    norms = torch.tensor(run["norms"])
    torch.testing.assert_close(norms, torch.tensor(expected["norms"])[-len(norms) :], rtol=1e-4, atol=0)


def test_the_comparison_could_fail(results):
    """The oracle moves by far more than the tolerance, clips some updates and leaves others alone."""
    end = oracle(results, "fp32")
    start = {"states": [engine.state() for engine in engine_worker.make_engines(PLAIN, engine_worker.World.alone())]}
    assert distance(end, start, "weights/") > 10 * TOLERANCE["bf16"]
    assert distance(oracle(results, "bf16"), end, "weights/") > TOLERANCE["fp32"]  # bf16 is really computed
    norms = [norm for pair in end["norms"] for norm in pair]
    assert min(norms) < engine_worker.OPTIMIZER.clip_norm < max(norms)


@pytest.mark.parametrize("stage", [1, 3])
def test_on_the_same_topology_a_resumed_run_is_the_same_bit_for_bit(results, stage):
    name = label(ZERO[stage], 2)
    straight, resumed = load(results, name), load(results, f"{name}-to-{name}")
    assert distance(straight, resumed) == 0
    assert straight["norms"][engine_worker.SAVED_AFTER :] == resumed["norms"]


@pytest.mark.parametrize("name", [n for n in FRESH if n.endswith("of2")])
def test_every_rank_sees_the_same_state_and_norms(results, name):
    assert load(results, name)["ranks_agree"]


@pytest.mark.parametrize("name", [*FRESH, *RESUMED])
def test_working_weights_are_the_master_weights_in_the_engines_precision(results, name):
    run, dtype = load(results, name), torch.bfloat16 if "bf16" in name.split("-to-")[-1] else torch.float32
    for working, state in zip(run["working"], run["states"], strict=True):
        assert {f"weights/{key}" for key in working} == {key for key in state if key.startswith("weights/")}
        assert all(torch.equal(value, state[f"weights/{key}"].to(dtype)) for key, value in working.items())


@pytest.mark.parametrize("name", FRESH)
def test_one_rank_with_a_bad_gradient_stops_the_update_everywhere(results, name):
    run = load(results, name)
    assert not math.isfinite(run["bad_norm"])
    assert run["skipped"]


@pytest.mark.parametrize("settings", [PLAIN_BF16, ZERO[2], ZERO_BF16[3]], ids=str)
def test_batch_statistics_become_those_of_rank_0(results, settings):
    first, second = torch.load(results / f"{label(settings, 2)}.buffers")
    assert first.any()
    assert torch.equal(first, second)


def test_nothing_is_compiled(results):
    assert not (results / "compiled").exists()
