"""A fit that is ended early gives the stages that are done: on request, by a budget, and by a signal to the command."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ebmscale.density.prior import StandardNormal
from ebmscale.errors import ConfigError
from ebmscale.ratios import FitSettings, StageRow, fit_ratio, two_sample_test
from ebmscale.ratios.watch import Watch
from ebmscale.stop import StopSignal
from tests.ratios.test_fit import QUICK, narrow, normal

IN_STAGES = replace(QUICK, start="zero", max_updates=100)
"""So that a wide gap takes several stages."""


def far(num: int) -> torch.Tensor:
    return 12 + 0.5 * normal(num, 1, seed=2)


def test_a_stop_ends_the_fit_with_the_stages_that_are_done() -> None:
    stop, rows = StopSignal(), []

    def progress(row: StageRow) -> None:
        rows.append(row)
        if row.stage == 2:
            stop.request("SIGTERM")

    fitted = fit_ratio(StandardNormal(1), far(2000), settings=IN_STAGES, progress=progress, watch=Watch(stop))
    assert list(fitted.stages) == rows
    assert fitted.num_stages == 2
    assert fitted.stopped == "interrupted by SIGTERM"
    assert "the fit is not complete: interrupted by SIGTERM" in fitted.lines()
    assert 0 < fitted.kl < 72
    whole = fit_ratio(StandardNormal(1), far(2000), settings=IN_STAGES)
    assert whole.stopped is None
    assert whole.num_stages > 2


def test_a_stop_before_the_first_stage_is_done_ends_it_in_order() -> None:
    stop = StopSignal()
    stop.request("SIGINT")
    fitted = fit_ratio(normal(2000, 1), narrow(2000, 1), settings=QUICK, watch=Watch(stop))
    assert len(fitted.stages) == 1
    assert fitted.stages[0].updates <= QUICK.evidence_every
    assert math.isfinite(fitted.kl)


def test_a_stop_before_p_is_fitted_says_what_stands_for_it() -> None:
    stop = StopSignal()
    watch = Watch(stop)
    fitted = fit_ratio(
        normal(2000, 2), narrow(2000, 2), base="gaussian", settings=QUICK, watch=watch,
        progress=lambda row: stop.request("SIGINT"),
    )  # fmt: skip
    assert fitted.stopped is not None
    assert "before p was fitted" in fitted.stopped
    assert fitted.reference is None
    assert fitted.kl == pytest.approx(2 * 0.5 * (0.49 - 1 - 2 * math.log(0.7) + 1), abs=0.2)


def test_a_budget_ends_the_fit() -> None:
    now = [0.0]

    def say(what: str) -> None:
        now[0] += 1

    settings = replace(IN_STAGES, budget_s=6.0)
    watch = Watch(say=say, clock=lambda: now[0])
    fitted = fit_ratio(StandardNormal(1), far(2000), settings=settings, watch=watch)
    assert 1 <= len(fitted.stages) < 8
    assert now[0] <= 8
    with pytest.raises(ConfigError, match="budget_s"):
        FitSettings(budget_s=0)


def test_a_two_sample_test_that_is_stopped_is_still_valid() -> None:
    stop = StopSignal()
    stop.request("SIGINT")
    found = two_sample_test(normal(400, 1), narrow(400, 1), settings=QUICK, num_permutations=99, watch=Watch(stop))
    assert 0.01 <= found.p_value <= 1


def test_the_command_writes_what_is_done_at_a_signal(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    np.save(tmp_path / "p.npy", noise.normal(size=(2000, 8)))
    np.save(tmp_path / "q.npy", 3 * np.sign(noise.normal(size=(2000, 8))) + noise.normal(size=(2000, 8)))
    command = [sys.executable, "-m", "ebmscale", "ratio", "p.npy", "q.npy", "--base", "gaussian", "--out", "r.npz"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert "q, stage 1" in lines[1]
    assert "the fit is not complete: interrupted by SIGTERM" in out
    assert "stopped: interrupted by SIGTERM" in err
    assert np.load(tmp_path / "r.npz")["log_ratio_q"].shape == (2000,)
    about = json.loads((tmp_path / "r.json").read_text())
    assert "SIGTERM" in about["stopped"]
    assert len(about["stages"]) >= 1
