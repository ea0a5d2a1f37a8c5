"""What a trial is worth, and which trials are best."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.config import RunConfig, with_values
from ebmscale.search.objectives import best, objective_value, pareto, ranked
from ebmscale.search.space import Objective
from ebmscale.search.trial import TrialRecord
from ebmscale.stop import StopSignal
from ebmscale.training.loop import train
from ebmscale.training.reports import AT_EVIDENCE, AT_INTERVAL, evidence_report, interval_report
from ebmscale.training.view import View
from ebmscale.world import World
from tests.search.conftest import make, record

MSE = {"metric": "held_out_mse", "direction": "min"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.3),
        ({"over": "best"}, 0.2),
        ({"over": "best", "direction": "max"}, 0.5),
        ({"reach": 0.25}, 2000.0),
        ({"reach": 0.1}, None),
        ({"reach": 0.3, "direction": "max"}, 1000.0),
        ({"metric": "auc"}, None),
        ({"metric": "evaluate/FD"}, 7.0),
    ],
)
def test_values_of_an_objective(changes: dict[str, object], expected: float | None) -> None:
    trial = record(0, 0.5, 0.2, 0.3, measured={"evaluate/FD": 7.0})
    assert objective_value(Objective.model_validate(MSE | changes), trial) == expected


def test_a_value_so_far() -> None:
    assert objective_value(Objective.model_validate(MSE), record(0, 0.5, 0.2, 0.3), until=2500) == 0.2


def test_a_value_that_is_not_a_number_is_none() -> None:
    _, space = make()
    records = [record(0, 0.5, math.nan), record(1, math.nan), record(2, 0.4)]
    assert [objective_value(space.objectives[0], one) for one in records] == [0.5, None, 0.4]
    assert [one.number for one in ranked(space, records)] == [2, 0]
    measured = Objective(metric="evaluate/reconstruction/psnr", direction="max")
    assert objective_value(measured, record(0, measured={measured.metric: math.nan})) is None


def test_only_finished_trials_are_ranked() -> None:
    _, space = make()
    records = [record(0, 0.4), record(1, 0.1, status="stopped"), record(2, 0.2), record(3, status="failed")]
    assert [r.number for r in ranked(space, records)] == [2, 0]
    found = best(space, records)
    assert found is not None
    assert found.number == 2
    assert best(space, records[3:]) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    _, space = make(objectives=[MSE, {"metric": "auc", "direction": "max"}])
    records = [record(n, float(a)) for n, (a, _) in enumerate(points)]
    for one, (_, b) in zip(records, points, strict=True):
        one.reports[-1]["auc"] = float(b)
    on = {one.number for one in pareto(space, records)}
    for n, (a, b) in enumerate(points):
        beaten = any((c <= a and d >= b) and (c, d) != (a, b) for c, d in points)
        assert (n in on) == (not beaten)


def test_every_name_that_may_be_an_objective_is_reported(tiny: RunConfig) -> None:
    """By a real run: the lists would else drift from what the loop says."""
    config = with_values(tiny, {"train.max_samples": 1600, "prior.kind": "persistent"}, "tiny")
    reports: list[dict[str, float]] = []

    class Listening(View):
        def event(self, samples_seen, event) -> None:
            reports.append(evidence_report(samples_seen, event))

        def metrics(self, samples_seen, metrics) -> None:
            reports.append(interval_report(samples_seen, metrics, 320))

    train(config, Listening(quiet=True), World.alone(), StopSignal())
    assert {name for report in reports for name in report} == {"samples_seen", *AT_EVIDENCE, *AT_INTERVAL}


def test_a_repeated_report_adds_nothing() -> None:
    trial = TrialRecord(number=0, values={})
    assert trial.add({"samples_seen": 10.0, "auc": 0.5})
    assert not trial.add({"samples_seen": 10.0, "auc": 0.5})
    assert trial.add({"samples_seen": 10.0, "train/mse": 1.0})  # another part of the same moment
    assert trial.add({"samples_seen": 20.0, "auc": 0.6})
    assert not trial.add({"samples_seen": 10.0, "auc": 0.5})
    assert [report["samples_seen"] for report in trial.reports] == [10.0, 20.0]
