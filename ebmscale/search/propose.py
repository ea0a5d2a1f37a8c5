"""Proposes the values of trial n, as a function of the space, n, and the recorded trials.

No state is kept between two calls, and each call draws its randomness from (seed, n). The records are the whole state.
So a search that resumes after a crash proposes the same values as without the crash.
"""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from ebmscale.config import RunConfig, value_at
from ebmscale.errors import ConfigError
from ebmscale.search.objectives import scores
from ebmscale.search.parameter import Parameter
from ebmscale.search.space import Space
from ebmscale.search.trial import TrialRecord

INSTALL = "pip install 'ebmscale[search]'"
STARTUP = 5  # trials drawn at random before Optuna's model is used
MOST_POINTS = 100_000  # of a grid; more would never be trained


def check_searcher(space: Space) -> None:
    """Refuses a searcher that cannot work here.

    Raises:
        ConfigError: Optuna is not installed; the space is not a grid, has more than `MOST_POINTS` points, or has fewer
            than `num_trials`.
    """
    if space.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(f"searcher optuna needs Optuna, which is not installed: {INSTALL}.")
    if space.searcher == "grid":
        for key, parameter in space.space.items():
            if parameter.grid is None:
                raise ConfigError(
                    f"space.{key}: a grid needs the number of points of a range; add `points: 3`, or list a choice."
                )
            if parameter.choice is not None and len({json.dumps(one) for one in parameter.choice}) < len(
                parameter.choice
            ):
                raise ConfigError(
                    f"space.{key}: the choice lists a value twice, so a grid trains it twice; leave one out."
                )
        size = sum(1 for _ in islice(grid(space), MOST_POINTS + 1))
        if size > MOST_POINTS:
            raise ConfigError(
                f"The grid has more than {MOST_POINTS:,} points; give ranges fewer `points`, or use searcher random."
            )
        if space.num_trials is not None and space.num_trials > size:
            raise ConfigError(f"num_trials is {space.num_trials}, but the grid has {size} points; lower it.")


def num_trials(space: Space) -> int:
    """The number of trials of the complete search."""
    return space.num_trials if space.num_trials is not None else sum(1 for _ in grid(space))


def propose_values(space: Space, config: RunConfig, number: int, records: Mapping[int, TrialRecord]) -> dict[str, Any]:
    """The values of trial `number`.

    Args:
        space: of the values.
        config: the first trial has its values.
        number: of the trial, from 0.
        records: of all trials so far.
    """
    if space.searcher == "grid":
        return next(values for place, values in enumerate(grid(space)) if place == number)
    if number == 0 and space.has_default:
        return default_values(space, config)
    if space.searcher == "optuna":
        return _from_optuna(space, number, records)
    rng = np.random.default_rng([space.seed, number])
    return space.draw(lambda key, parameter: parameter.at(float(rng.random())))


def default_values(space: Space, config: RunConfig) -> dict[str, Any]:
    """The configuration's own values of the space's keys.

    Raises:
        ConfigError: one of them lies outside the space.
    """
    tree = config.model_dump(mode="json")

    def own(key: str, parameter: Parameter) -> Any:
        value = value_at(tree, key)
        if not parameter.holds(value):
            raise ConfigError(
                f"space.{key}: the configuration's own value {value} is not in the space, but default_first makes it "
                "the first trial; widen the range, or set default_first: false."
            )
        return value

    return space.draw(own)


def grid(space: Space) -> Iterator[dict[str, Any]]:
    """Yields every combination of active values; the last key changes fastest."""
    keys = list(space.space)

    def below(place: int, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if place == len(keys):
            yield values
            return
        parameter = space.space[keys[place]]
        if not parameter.applies(values):
            yield from below(place + 1, values)
            return
        for value in parameter.grid or []:
            yield from below(place + 1, values | {keys[place]: value})

    return below(0, {})


def _from_optuna(space: Space, number: int, records: Mapping[int, TrialRecord]) -> dict[str, Any]:
    """Values from Optuna's tree-structured Parzen estimator, with the recorded trials as its history."""
    import optuna  # noqa: PLC0415 (an extra)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(np.random.SeedSequence([space.seed, number]).generate_state(1)[0])
    study = optuna.create_study(
        directions=["minimize"] * len(space.objectives),
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True),
    )
    for record in sorted(records.values(), key=lambda one: one.number):
        if record.number < number:
            study.add_trial(_as_optuna(space, record))
    trial = study.ask()

    def choose(key: str, parameter: Parameter) -> Any:
        if parameter.choice is not None:
            return parameter.choice[trial.suggest_categorical(key, list(range(len(parameter.choice))))]
        low, high = parameter.ends
        if parameter.integer is not None:
            return trial.suggest_int(key, int(low), int(high))
        return parameter.rounded(trial.suggest_float(key, low, high, log=parameter.loguniform is not None))

    return space.draw(choose)


def as_parameters(space: Space, record: TrialRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a record and their distributions, by key, in Optuna's form."""
    from optuna import distributions  # noqa: PLC0415

    params: dict[str, Any] = {}
    known: dict[str, Any] = {}
    for key, value in record.values.items():
        parameter = space.space[key]
        if parameter.choice is not None:
            known[key] = distributions.CategoricalDistribution(list(range(len(parameter.choice))))
            params[key] = parameter.place(value)
        elif parameter.integer is not None:
            known[key], params[key] = distributions.IntDistribution(*parameter.integer), int(value)
        else:
            low, high = parameter.ends
            log = parameter.loguniform is not None
            known[key], params[key] = distributions.FloatDistribution(low, high, log=log), float(value)
    return params, known


def _as_optuna(space: Space, record: TrialRecord) -> Any:
    """The record as a trial of Optuna; smaller values are better."""
    from optuna.trial import TrialState, create_trial  # noqa: PLC0415

    params, known = as_parameters(space, record)
    found = scores(space, record)
    values = [o.sign * v if v is not None else math.nan for o, v in zip(space.objectives, found, strict=True)]
    if any(math.isnan(value) for value in values) or record.status in ("running", "failed"):
        state = TrialState.RUNNING if record.status == "running" else TrialState.FAIL
        return create_trial(state=state, params=params, distributions=known)
    if record.status == "stopped" and len(values) == 1:  # Optuna uses its last place and the value there
        steps = {record.samples_seen: values[0]}
        return create_trial(state=TrialState.PRUNED, params=params, distributions=known, intermediate_values=steps)
    return create_trial(state=TrialState.COMPLETE, params=params, distributions=known, values=values)
