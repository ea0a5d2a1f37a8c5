"""Proposals are a function of space, number and records: what a crash takes away, it does not change."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmscale.errors import ConfigError
from ebmscale.search.propose import default_values, grid, num_trials, propose_values
from ebmscale.search.space import Space
from ebmscale.search.trial import TrialRecord
from tests.search.conftest import make, record

GRID: dict[str, Any] = {
    "searcher": "grid",
    "num_trials": None,
    "space": {
        "posterior.start": {"choice": ["base", "encoder"]},
        "posterior.num_steps": {"int": [5, 15], "points": 3, "when": {"posterior.start": "base"}},
        "train.ratio.rate": {"loguniform": [1e-4, 1e-2], "points": 3},
    },
}


def search(space: Space, config: Any, stops: set[int]) -> list[dict[str, Any]]:
    """One trial after another; after the given ones everything but what was written down is forgotten."""
    records: dict[int, TrialRecord] = {}
    for number in range(num_trials(space)):
        values = propose_values(space, config, number, records)
        worth = abs(values["train.ratio.rate"] - 2e-3) + (values["posterior.start"] == "base")
        records[number] = record(number, worth, values=values)
        if number in stops:
            records = {n: TrialRecord.model_validate_json(r.model_dump_json()) for n, r in records.items()}
    return [one.values for one in records.values()]


@pytest.mark.parametrize("changes", [{"searcher": "random"}, {"searcher": "optuna"}, GRID])
def test_interruptions_change_no_proposal(changes: dict[str, Any]) -> None:
    config, space = make(**changes)
    straight = search(space, config, set())
    assert search(space, config, {0, 3, 4, 8}) == straight
    assert all(parameter.holds(v[k]) for v in straight for k, parameter in space.space.items() if k in v)


def test_the_seed_and_the_number_tell_proposals_apart() -> None:
    config, space = make(default_first=False)
    drawn = search(space, config, set())
    assert len({repr(values) for values in drawn}) == len(drawn)
    _, other = make(default_first=False, seed=1)
    assert search(other, config, set())[0] != drawn[0]


def test_the_first_trial_is_the_configuration_itself() -> None:
    config, space = make()
    values = propose_values(space, config, 0, {})
    assert values == {"posterior.start": "base", "posterior.num_steps": 20, "train.ratio.rate": 2e-3}
    assert default_values(space, config) == values


def test_optuna_draws_near_what_was_good() -> None:
    """Of one parameter with a sharp optimum, drawn 25 times after 20 random trials, most lie within its decade."""
    space_tree = {"train.ratio.rate": {"loguniform": [1e-6, 1e-1]}}
    config, space = make(searcher="optuna", num_trials=45, default_first=False, space=space_tree)
    records: dict[int, TrialRecord] = {}
    for number in range(45):
        values = propose_values(space, config, number, records)
        distance = abs(values["train.ratio.rate"] / 1e-3 - 1)
        records[number] = record(number, min(distance, 10.0), values=values)
    near = [1e-3 / 3.2 < records[n].values["train.ratio.rate"] < 1e-3 * 3.2 for n in range(20, 45)]
    assert sum(near) > 12  # by chance about 5 of 25


@pytest.mark.parametrize("status", ["running", "failed", "stopped"])
def test_optuna_takes_trials_of_every_state(status: str) -> None:
    config, space = make(searcher="optuna")
    records = {n: record(n, *([0.5] if status == "stopped" else []), status=status) for n in range(7)}
    values = propose_values(space, config, 7, records)
    assert space.space["train.ratio.rate"].holds(values["train.ratio.rate"])


def test_optuna_takes_several_objectives() -> None:
    both = [{"metric": "held_out_mse", "direction": "min"}, {"metric": "auc", "direction": "max"}]
    config, space = make(searcher="optuna", objectives=both)
    records = {n: record(n, 0.1 * n) for n in range(7)}
    for one in records.values():
        one.reports[-1]["auc"] = 0.5
    assert propose_values(space, config, 7, records)


def test_a_grid_has_every_combination_once() -> None:
    config, space = make(**GRID)
    points = list(grid(space))
    assert num_trials(space) == len(points) == 3 * 3 + 3
    assert len({repr(point) for point in points}) == len(points)
    assert [propose_values(space, config, n, {}) for n in range(len(points))] == points
    assert {p["train.ratio.rate"] for p in points} == {1e-4, 1e-3, 1e-2}


def test_a_grid_with_too_few_points_is_refused() -> None:
    from ebmscale.search.propose import check_searcher

    _, space = make(**GRID | {"num_trials": 13})
    with pytest.raises(ConfigError, match="the grid has 12 points"):
        check_searcher(space)


def test_a_missing_optuna_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from ebmscale.search.propose import check_searcher

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _, space = make(searcher="optuna")
    with pytest.raises(ConfigError, match=r"pip install 'ebmscale\[search\]'"):
        check_searcher(space)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 10**6))
def test_random_values_keep_to_the_space(seed: int, number: int) -> None:
    config, space = make(seed=seed)
    values = propose_values(space, config, number, {})
    assert ("posterior.num_steps" in values) == (values["posterior.start"] == "base")
    assert all(space.space[key].holds(value) for key, value in values.items())
