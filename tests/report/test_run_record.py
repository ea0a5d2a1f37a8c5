"""The record of a run: its decisions, and curves that break where a new ratio starts."""

import math

import pytest

from ebmscale.report.pictures import Curve, Mark
from ebmscale.report.run_record import RunRecord, fractions
from ebmscale.training.metrics import PARTS


def event(samples_seen, stage, decision="Hold", loss=1.0, settling_since=None, started=0):
    return {
        "samples_seen": samples_seen,
        "stage": stage,
        "decision": decision,
        "evidence": {"loss": loss, "kl_bound": 0.5, "kl_bound_error": 0.1},
        "state": {"settling_since": settling_since, "started": started},
    }


EVENTS = [
    event(10, 1),
    event(20, 1, settling_since=20),
    event(30, 1, settling_since=20),
    event(40, 1, "Advance", started=40),
    event(50, 2, "RollBack", loss=None, started=50),
    event(60, 2, started=60),
    event(70, 2, "Finish", started=70),
    {"samples_seen": 80, "stage": 2, "num_frozen": 1, "held_out_mse": 0.1},
]
RECORD = RunRecord(EVENTS, [])


def test_kinds():
    assert RECORD.kinds == ["Hold", "Settling", "Hold", "Advance", "RollBack", "New round", "Finish"]
    assert RECORD.marks() == [
        *(Mark(20, "Settling"), Mark(40, "Advance"), Mark(50, "RollBack"), Mark(60, "New round"), Mark(70, "Finish"))
    ]


def test_the_first_measurement_begins_no_new_round():
    events = [event(10, 1, started=10), event(20, 1, started=10), event(30, 1, started=30)]
    assert RunRecord(events, []).kinds == ["Hold", "Hold", "New round"]


def test_curves_break_where_a_ratio_starts_from_nothing():
    curves = RECORD.evidence("loss")
    assert [curve.x for curve in curves] == [[10, 20, 30, 40], [50], [60, 70]]
    assert math.isnan(curves[1].y[0])
    assert RECORD.evidence("kl_bound", "kl_bound_error")[0].band == pytest.approx([0.2] * 4)


def test_what_is_memorised_is_a_difference_of_losses_and_may_be_missing():
    parts = {"used": 0.25, "fresh": 0.5, "train": 1.0, "held_out": 2.0}
    events = [
        event(10, 1) | {"memorised": {"used": 0.25, "fresh": 0.5}},
        event(20, 1, "Advance") | {"memorised": parts},
    ]
    events += [event(30, 2) | {"memorised": None}]
    found = RunRecord(events, []).memorised()
    assert found == [Curve([20], [1.0], "posteriors"), Curve([10, 20], [0.25, 0.25], "negatives")]
    assert RECORD.memorised() == []


def test_stages_and_end():
    assert RECORD.starts() == {1: 0, 2: 40}
    assert RECORD.end == 80
    assert RECORD.squared_errors() == [Curve([80], [0.1], "held-out"), Curve([], [], "training")]


def test_nothing_recorded():
    empty = RunRecord([], [])
    assert (empty.end, empty.wall_s, empty.starts(), empty.marks(), empty.evidence("loss")) == (0, None, {}, [], [])


def test_time():
    line = {"time": {"total_s": 4.0, "posterior_s": 2.0, "ratio_s": 1.0}}
    record = RunRecord([], [{"samples_seen": 100} | line, {"samples_seen": 300} | line])
    assert record.edges() == [0, 100, 300]
    assert record.speeds() == [25, 50]
    assert record.wall_s == 8
    seconds = record.seconds()
    assert list(seconds) == [*PARTS, "other"]
    assert (seconds["posterior"], seconds["other"], seconds["data"]) == ([2, 2], [1, 1], [0, 0])
    assert fractions(seconds)["posterior"] == [0.5, 0.5]
