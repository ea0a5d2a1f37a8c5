"""The fused chain in Triton's interpreter, on the CPU and in a process of its own, against `run_chain`."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = str(Path(__file__).with_name("fused_worker.py"))
TOLERANCE = {"fp32": 1e-5, "bf16": 0.02}
"""Relative difference of the displacements of chains. In bf16 weights and activations are rounded."""

CASES = [
    {"dim": 5, "hidden": [20, 17], "stages": 1, "steps": 1, "chains": 1, "dtype": "fp32"},
    {"dim": 5, "hidden": [20, 17], "stages": 3, "steps": 4, "chains": 37, "dtype": "fp32", "activation": "gelu"},
    {"dim": 20, "hidden": [70, 80], "stages": 2, "steps": 5, "chains": 18, "dtype": "fp32", "launch": 2},
    {"dim": 17, "hidden": [30, 70], "stages": 2, "steps": 3, "chains": 33, "dtype": "fp32", "seed": 7},
    {"dim": 20, "hidden": [70, 80], "stages": 2, "steps": 3, "chains": 18, "dtype": "bf16", "activation": "leaky_relu"},
    {"dim": 100, "hidden": [200, 200], "stages": 1, "steps": 2, "chains": 3, "dtype": "bf16"},
]
ON_GPU = [
    {"dim": 100, "hidden": [200, 200], "stages": 4, "steps": 60, "chains": 1024, "dtype": "bf16"},
    {"dim": 128, "hidden": [200, 200], "stages": 8, "steps": 20, "chains": 4000, "dtype": "bf16", "seed": 3},
    {"dim": 100, "hidden": [200, 200], "stages": 8, "steps": 7, "chains": 1100, "dtype": "bf16", "launch": 3},
    {"dim": 16, "hidden": [200, 200], "stages": 2, "steps": 5, "chains": 1, "dtype": "bf16", "activation": "gelu"},
    {"dim": 16, "hidden": [64, 33], "stages": 1, "steps": 1, "chains": 70, "dtype": "fp32", "activation": "leaky_relu"},
]


def results(cases: list[dict], interpret: bool) -> list[dict]:
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if interpret else {})
    worker = [sys.executable, WORKER, json.dumps(cases)]
    process = subprocess.run(worker, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def check(case: dict, result: dict, tolerance: float) -> None:
    assert result["error"] < tolerance, (case, result)
    assert result["trace"] < tolerance, (case, result)
    assert result["untouched"], case
    assert result["launches"] == math.ceil(case["steps"] / case.get("launch", 100))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_fused_chain_is_run_chain_in_the_interpreter() -> None:
    for case, result in zip(CASES, results(CASES, interpret=True), strict=True):
        check(case, result, TOLERANCE[case["dtype"]])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_noise_from_a_counter_is_standard_normal() -> None:
    case = {"dim": 10, "hidden": [16, 16], "stages": 1, "steps": 50, "chains": 40, "dtype": "fp32", "seed": 11}
    mean, std = results([case], interpret=True)[0]["noise"]
    number = 10 * 50 * 40
    assert abs(mean) < 4 / number**0.5
    assert abs(std - 1) < 4 / (2 * number) ** 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_the_fused_chain_is_run_chain_on_a_gpu() -> None:
    cases = [case | {"device": "cuda"} for case in ON_GPU]
    for case, result in zip(cases, results(cases, interpret=False), strict=True):
        check(case, result, {"fp32": 1e-4, "bf16": 0.03}[case["dtype"]])
