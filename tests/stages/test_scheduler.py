"""When a stage ends and whether another begins, from curves and records made by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest

from ebmscale.density.evidence import Evidence
from ebmscale.stages.record import Memorised, StageRecord
from ebmscale.stages.scheduler import (
    CHANCE,
    Bounds,
    Budget,
    after,
    elasticity,
    explore,
    memorises,
    next_share,
    room_left,
)
from ebmscale.stages.settings import StageSettings
from ebmscale.stages.trainer import Measured

SETTINGS = Bounds(400, 4000)
UNLIMITED = Budget(1.0)


def curve(power: float, size: float, updates: int) -> list[Measured]:
    """The loss falls below chance by `size` times the power of the share of the updates done."""
    return [Measured(at, CHANCE - size * (at / updates) ** power) for at in range(0, updates + 1, 50)]


def record(**changes: Any) -> StageRecord:
    evidence = Evidence(1.0, 0.01, 0.8, 0.01, 1.0, 0.1, 0.5)
    made = StageRecord(
        1, 400, 400, "exact draws", "", 1.0, evidence, Memorised(0.5, 0.5, 0.5, 0.5), 1.0, 1.0, 0.1, 0.0, 0.01, 1e6,
        10.0, "",
    )  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize("power", [0.05, 0.3, 0.8])
def test_the_elasticity_is_the_power_of_the_curve(power: float) -> None:
    assert elasticity(curve(power, 0.5, 1000)) == pytest.approx(power, abs=1e-6)


def test_a_curve_that_rises_has_no_elasticity() -> None:
    assert elasticity([Measured(at, 1.0 + at / 5000) for at in range(0, 1000, 50)]) == 0


def test_a_narrow_gap_asks_for_one_long_stage_and_a_wide_one_for_several() -> None:
    """A loss near chance teaches at every update; one near zero says that a new stage would teach more."""
    narrow, wide = curve(0.3, 0.5, 500), curve(0.3, 1.35, 500)
    assert explore(narrow, [], UNLIMITED, SETTINGS).goes_on
    assert not explore(wide, [], UNLIMITED, SETTINGS).goes_on
    assert next_share([], narrow[-1].loss) < 0.3 < next_share([], wide[-1].loss)


def test_a_stage_that_learns_nothing_ends_when_it_has_had_its_least() -> None:
    nothing = [Measured(at, CHANCE + 0.001) for at in range(0, 500, 50)]
    assert not explore(nothing, [], UNLIMITED, SETTINGS).goes_on
    assert explore(nothing[:2], [], UNLIMITED, SETTINGS).goes_on


def test_a_saturated_loss_says_at_its_first_measurement_that_little_more_can_be_added() -> None:
    """No elasticity is known yet, but the loss cannot fall below 0."""
    young = Bounds(100, 10_000)
    assert not explore([Measured(100, 0.17)], [], UNLIMITED, young).goes_on
    assert explore([Measured(100, 0.7)], [], UNLIMITED, young).goes_on
    assert room_left(CHANCE / 4) == pytest.approx(1 / 3)
    assert room_left(CHANCE + 0.1) == math.inf


def test_a_young_stage_above_chance_goes_on() -> None:
    """The first updates are often too large and raise the loss above chance. The stage can still learn."""
    assert explore([Measured(100, CHANCE + 0.1)], [], UNLIMITED, Bounds(100, 10_000)).goes_on


def test_a_stage_in_closed_form_says_nothing_of_the_work_of_others() -> None:
    records = [record(nats=9.0, work=0.0), record(stage=2, nats=2.0, work=1e6)]
    assert next_share(records, CHANCE / 2) == pytest.approx(0.25)


def test_the_record_says_what_a_new_stage_is_worth() -> None:
    records = [record(nats=8.0, work=2e6), record(stage=2, nats=2.0, work=1e6)]
    assert next_share(records, 0.01) == pytest.approx(0.5)
    assert explore(curve(0.6, 0.9, 500), records, UNLIMITED, SETTINGS).goes_on
    assert not explore(curve(0.4, 0.9, 500), records, UNLIMITED, SETTINGS).goes_on


def test_a_stage_has_at_least_and_at_most_its_updates() -> None:
    assert explore(curve(0.0, 1.3, 50), [], UNLIMITED, SETTINGS).goes_on
    assert not explore(curve(0.9, 0.5, 1000), [], UNLIMITED, SETTINGS).goes_on
    assert not explore([Measured(50, 0.001)], [], UNLIMITED, SETTINGS).goes_on


def test_time_that_is_allowed_is_kept() -> None:
    wide = curve(0.3, 1.35, 500)
    settles = explore(curve(0.9, 0.5, 500), [], Budget(10.0, 35.0), SETTINGS)
    assert not settles.goes_on
    assert "time allowed" in settles.reason
    assert explore(wide, [], Budget(10.0, 60.0), SETTINGS).reason == "no time for another stage"
    assert not explore(wide, [], Budget(10.0, 600.0), SETTINGS).goes_on


@pytest.mark.parametrize(
    ("changes", "left", "goes_on", "words"),
    [
        ({}, math.inf, True, "KL bound 1.0000"),
        ({"gain": 0.0}, math.inf, False, "no gain"),
        ({"nats": 0.19}, math.inf, False, "not significant at 2 standard errors, so it is the last stage"),
        ({"nats": 0.002, "nats_error": 0.0005}, math.inf, False, "little is left"),
        ({"stage": 8}, math.inf, False, "the last of 8"),
        ({}, 2.0, False, "the time allowed is used"),
    ],
)
def test_what_follows_a_stage(changes: dict[str, Any], left: float, goes_on: bool, words: str) -> None:
    verdict = after(record(**changes), Budget(10.0, left), StageSettings())
    assert verdict.goes_on == goes_on
    assert words in verdict.reason


def test_a_stage_that_adds_next_to_nothing_of_the_whole_is_the_last() -> None:
    small = record(nats=0.03, nats_error=0.001)
    assert after(small, UNLIMITED, StageSettings(), before=14.9).goes_on
    last = after(small, UNLIMITED, StageSettings(), before=15.0)
    assert not last.goes_on
    assert "little is left" in last.reason


def test_a_loss_that_keeps_rising_says_that_a_stage_memorises() -> None:
    def curve(*losses: float) -> list[tuple[float, float]]:
        return [(100 * (place + 1), loss) for place, loss in enumerate(losses)]

    assert memorises(curve(1.20, 1.10, 1.11, 1.12, 1.13, 1.14))
    assert memorises(curve(1.38, 1.39, 1.40, 1.41, 1.42))
    assert not memorises(curve(1.20, 1.11, 1.12, 1.13))  # too few to tell
    assert not memorises(curve(1.20, 1.10, 1.11, 1.12, 1.115, 1.13))  # it fell in between
    assert not memorises(curve(1.20, 1.10, 1.1001, 1.1002, 1.1003, 1.1004))  # too little to matter
    rising = curve(1.20, 1.10, 1.11, 1.12, 1.13, 1.14)
    assert explore(rising, [], UNLIMITED, SETTINGS).reason == "the held-out loss rises"
