"""A space as a file: what is read, what is refused, and that every draw keeps to it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.config import load_config, parse_config
from ebmscale.errors import ConfigError
from ebmscale.search.check import base_config, check_space, trial_config
from ebmscale.search.parameter import Parameter
from ebmscale.search.space import Space, load_space, parse_space
from ebmscale.search.trial import TrialRecord

ROOT = Path(__file__).parents[2]
DIGITS = load_config(ROOT / "configs" / "digits.yaml")
TEXT = """
num_trials: 4
objectives: [{metric: held_out_mse, direction: min}]
space:
  posterior.start: {choice: [base, encoder]}
  posterior.num_steps: {int: [5, 40], when: {posterior.start: base}}
  train.ratio.rate: {loguniform: [1.0e-4, 1.0e-2]}
  model.sigma: {uniform: [0.1, 0.5]}
"""

POINTS = {"train.ratio.rate": {"loguniform": [1e-4, 1e-2], "points": 2}, "model.sigma": {"choice": [0.3]}}
HUGE = POINTS | {"stages.updates_per_batch": {"int": [1, 10**20]}}
TWICE = POINTS | {"posterior.start": {"choice": ["base", "encoder", "base"]}}


def tree(**changes: Any) -> dict[str, Any]:
    made = yaml.safe_load(TEXT)
    for key, value in changes.items():
        made[key] = made[key] | value if key == "space" else value
    return made


def digits(**changes: Any):
    space = parse_space(tree(**changes))
    return base_config(DIGITS, space), space


@pytest.mark.parametrize("name", ["digits", "mnist_joint", "cifar10"])
def test_the_shipped_spaces_fit_their_configurations(name: str) -> None:
    space = load_space(ROOT / "configs" / "tune" / f"{name}.yaml")
    check_space(base_config(load_config(ROOT / "configs" / f"{name}.yaml"), space), space)
    assert parse_space(space.dump()) == space


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"serch": "random"}, "unknown key serch; did you mean searcher"),
        ({"space": {"train.ratio.rate": {"loguniform": [1, 1]}}}, "train.ratio.rate: the range .* is empty"),
        ({"space": {"train.ratio.rate": {"uniform": [2, 1]}}}, "the range .* is empty"),
        ({"space": {"posterior.start": {"choice": []}}}, "the choice is empty"),
        ({"space": {"train.ratio.rate": {"loguniform": [0, 1]}}}, "must be above 0"),
        ({"space": {"train.ratio.rate": {"loguniform": [0.1, 1], "uniform": [0, 1]}}}, "exactly one of"),
        ({"space": {"train.ratio.rate": {"lognormal": [0.1, 1]}}}, "unknown key .*lognormal; did you mean loguniform"),
        ({"space": {"prior.num_steps": {"int": [1, 3], "when": {"prior.kind": "x"}}}}, "must be a key of the space"),
        ({"space": {"train": {"ratio": {"rate": {"uniform": [1, 2]}}}}}, "written as one word with dots"),
        ({"space": {"train.ratio.rate": 3}}, "train.ratio.rate: input should be a mapping of keys, but it is 3"),
        ({"space": {"train.ratio.rate": {"uniform": [1]}}}, "the key .*uniform.1 is missing"),
        ({"space": {"train.ratio.rate": {"uniform": [1, 2, 3]}}}, "input should have 2 or fewer entries"),
        ({"space": {"train.ratio.rate": {"uniform": [1, 2], "points": 10**9}}}, "less than or equal to 10000"),
        ({"asha": {"reduction": 1.0000001}}, "greater than or equal to 1.1"),
        ({"num_trials": 1e30}, "num_trials: input is too large, but it is"),
        ({"num_trials": 2.5}, "num_trials: input should be a whole number"),
        ({"objectives": []}, "objectives: input should have 1 or more entries"),
        ({"objectives": [{"metric": "auc", "direction": "up"}]}, "direction"),
        ({"num_trials": None}, "num_trials is missing"),
        ({"overrides": {"model.sigma": 0.2}}, "model.sigma is in the space and in the overrides"),
    ],
)
def test_what_is_no_space_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_space(tree(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"train.ratio.rat": {"uniform": [0.1, 1]}}}, "key train.ratio.rat; did you mean train.ratio.rate"),
        ({"space": {"train.ratio": {"choice": [{"rate": 1.0}]}}}, "unknown key train.ratio"),
        ({"space": {"ray.num_workers": {"int": [1, 2]}}}, "does not change what a run computes"),
        ({"space": {"train.ratio.rate": {"uniform": [-1, 1]}}}, "train.ratio.rate: the value -1.0 cannot be used"),
        ({"space": {"model.latent_dim": {"choice": [16, "many"]}}}, "the value many cannot be used"),
        ({"space": {"posterior.start": {"choice": ["base", "encodr"]}}}, "the value encodr cannot be used"),
        ({"objectives": [{"metric": "kl_bond", "direction": "min"}]}, "nothing reports kl_bond; did you mean kl_bound"),
        ({"objectives": [{"metric": "evaluate/FD", "direction": "min"}]}, "nothing reports evaluate/FD"),
        ({"overrides": {"train.max_sample": 1}}, "unknown key train.max_sample"),
        ({"searcher": "grid"}, "a grid needs the number of points"),
        ({"searcher": "grid", "space": HUGE}, "The grid has more than 100,000 points"),
        ({"searcher": "grid", "space": TWICE}, "space.posterior.start: the choice lists a value twice"),
        ({"scheduler": "pbt"}, "posterior.start cannot change within a run"),
        ({"scheduler": "asha", "asha": {"first_samples": 100000}}, "asha.first_samples must be below"),
        ({"space": {"model.sigma": {"uniform": [0.4, 0.5]}}}, "own value 0.3 is not in the space"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_configuration_is_refused(changes: dict[str, Any], words: str) -> None:
    space = parse_space(tree(**changes))
    with pytest.raises(ConfigError, match=words):
        check_space(base_config(DIGITS, space), space)


def test_a_value_that_only_goes_with_others_is_allowed() -> None:
    blocks = {"posterior.num_steps": {"int": [0, 40], "when": {"posterior.start": "encoder"}}}
    check_space(*digits(space=blocks))  # no steps from the base density would be refused
    with pytest.raises(ConfigError, match="no trial would have it"):
        check_space(*digits(space={"posterior.num_steps": {"int": [1, 40], "when": {"posterior.start": "nowhere"}}}))


@pytest.mark.parametrize(
    ("metric", "overrides", "why"),
    [
        ("chain/prior_drift", {}, "prior.kind is density"),
        ("chain/prior_log_density", {"method": "nce", "prior.kind": "persistent"}, "which needs no chains"),
        ("chain/prior_drift", {"method": "tre"}, "method tre trains without chains"),
        ("chain/posterior_drift", {"posterior.start": "encoder", "posterior.num_steps": 0}, "posterior.num_steps is 0"),
        ("kl_bound", {"method": "gaussian"}, "it trains no ratio"),
    ],
)
def test_what_no_trial_would_report_is_refused(metric: str, overrides: dict[str, Any], why: str) -> None:
    """It is allowed as soon as one value of the space makes a trial report it."""
    rate = {"train.ratio.rate": {"loguniform": [1.0e-4, 1.0e-2]}}
    made = tree() | {"space": rate, "overrides": overrides, "objectives": [{"metric": metric, "direction": "min"}]}
    space = parse_space(made)
    with pytest.raises(ConfigError, match=f"no trial would report {metric}, since .*{why}"):
        check_space(base_config(DIGITS, space), space)


def test_an_objective_that_some_trials_report_is_allowed() -> None:
    objectives = [{"metric": "chain/prior_drift", "direction": "min"}]
    check_space(*digits(space={"prior.kind": {"choice": ["density", "persistent"]}}, objectives=objectives))
    check_space(*digits(overrides={"method": "lebm"}, objectives=objectives))


def test_what_is_measured_at_the_end_cannot_steer_a_scheduler() -> None:
    objectives = [{"metric": "evaluate/FD", "direction": "min"}]
    config, space = digits(objectives=objectives)
    check_space(config, space, lambda: ["evaluate/FD"])
    config, space = digits(objectives=objectives, scheduler="asha")
    with pytest.raises(ConfigError, match="cannot judge by it"):
        check_space(config, space, lambda: ["evaluate/FD"])


@given(
    kind=st.sampled_from(["uniform", "loguniform", "int"]),
    low=st.integers(1, 1000),
    width=st.integers(1, 1000),
    fraction=st.floats(0, 1),
)
def test_every_draw_lies_in_its_range(kind: str, low: int, width: int, fraction: float) -> None:
    parameter = Parameter.model_validate({kind: [low, low + width]})
    value = parameter.at(fraction)
    assert parameter.holds(value)
    assert parameter.at(0.0) == low
    assert parameter.at(1.0) == low + width


def test_a_draw_is_uniform_on_its_scale() -> None:
    fractions = (np.arange(1000) + 0.5) / 1000
    for kind in ({"int": [1, 4]}, {"choice": list("abcd")}):
        parameter = Parameter.model_validate(kind)
        drawn = [parameter.at(float(f)) for f in fractions]
        assert all(drawn.count(value) == 250 for value in set(drawn))
    log = Parameter.model_validate({"loguniform": [1e-4, 1e-2]})
    assert log.at(0.5) == pytest.approx(1e-3, rel=1e-3)


def test_a_parameter_is_there_only_where_its_condition_holds() -> None:
    space = parse_space(tree())
    drawn = space.draw(lambda key, parameter: "encoder" if key == "posterior.start" else parameter.at(0.0))
    assert list(drawn) == ["posterior.start", "train.ratio.rate", "model.sigma"]
    drawn = space.draw(lambda key, parameter: parameter.at(0.0))
    assert drawn["posterior.num_steps"] == 5


def test_a_trial_is_a_run_below_the_search() -> None:
    config, space = digits(scheduler="pbt", space={}, pbt={"every_samples": 25000})
    made = trial_config(config, space, 7, 2, {"train.ratio.rate": 1e-05, "model.ratio.hidden": (8, 8)})
    assert made.storage.url == "runs/digits/trials"
    assert made.run.name == "0007-2"
    assert made.train.ratio.rate == 1e-05
    assert made.model.ratio.hidden == (8, 8)
    assert made.checkpoint.every_samples == 25000
    assert made.checkpoint.keep_last >= 4  # every place of comparison
    assert parse_config(made.dump()) == made


def test_true_is_not_one() -> None:
    assert not Parameter(choice=(1, 2)).holds(True)
    assert Parameter(choice=(True, False)).holds(True)
    assert Parameter(choice=([8, 8], [16])).holds((8, 8))


def test_the_file_is_named_where_it_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the space .*nothing.yaml"):
        load_space(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad.yaml is not valid YAML"):
        load_space(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_space(tmp_path / "list.yaml")


def test_keys_of_earlier_versions_get_their_present_names() -> None:
    space = Space.model_validate({
        "objectives": [{"metric": "loss", "direction": "min"}],
        "overrides": {"model.form": "svhn"},
        "space": {
            "model.ratio_squares": {"choice": [False, True]},
            "model.generator_width": {"int": [4, 8], "when": {"model.ratio_squares": True}},
        },
        "num_trials": 2,
    })  # fmt: skip
    assert list(space.space) == ["model.ratio.squares", "model.generator.width"]
    assert space.space["model.generator.width"].when == {"model.ratio.squares": True}
    assert space.overrides == {"model.generator.form": "svhn"}
    assert TrialRecord(number=0, values={"model.ratio_hidden": [8]}).values == {"model.ratio.hidden": [8]}
