"""Checks a space against the configuration that it varies, and refuses it before anything starts."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ebmscale.config import CheckpointBlock, RunConfig, known_keys, nearest_key, value_at, with_values
from ebmscale.errors import ConfigError
from ebmscale.search.objectives import EVALUATED
from ebmscale.search.parameter import Parameter
from ebmscale.search.population import MUTABLE, interval
from ebmscale.search.propose import check_searcher, default_values
from ebmscale.search.space import Space
from ebmscale.search.trial import folder_of
from ebmscale.training.reports import AT_EVIDENCE, AT_INTERVAL, why_never

FIXED = ("run.name", "storage", "ray", "checkpoint", "metrics", "device", "num_threads", "data.url")
"""Keys that change where and how a run computes, but not what it computes."""

TRIES = 20  # combinations of the other values that are checked with a value


def base_config(config: RunConfig, space: Space) -> RunConfig:
    """The configuration with the space's overrides.

    Raises:
        ConfigError: the overrides are not valid.
    """
    return with_values(config, space.overrides, "overrides")


def trial_config(config: RunConfig, space: Space, number: int, generation: int, values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a trial's run, whose storage is inside that of the search.

    Args:
        config: of the search, with the overrides.
        space: of the search.
        number: of the trial.
        generation: the number of checkpoints that the trial has taken over.
        values: of the space's keys.

    Raises:
        ConfigError: the values are not valid together.
    """
    made = with_values(config, values, f"trial {number}")
    storage = made.storage.model_copy(update={"url": config.storage.url.below(f"{config.run.name}/trials")})
    run = made.run.model_copy(update={"name": folder_of(number, generation)})
    checkpoint = made.checkpoint
    if space.scheduler == "pbt":  # a checkpoint must exist at every place where trials are compared
        every = interval(space, made)
        tree = checkpoint.model_dump() | {"every_samples": every, "keep_last": made.train.max_samples // every + 2}
        checkpoint = CheckpointBlock.model_validate(tree)
    return made.model_copy(update={"storage": storage, "run": run, "checkpoint": checkpoint})


def check_space(config: RunConfig, space: Space, evaluated: Callable[[], list[str]] = list) -> None:
    """Checks every value in the configuration, and checks that runs report every objective.

    Args:
        config: with the overrides.
        space: to check.
        evaluated: returns the names of values that can be measured on a finished run.

    Raises:
        ConfigError: a part of the space cannot work; the sentence says which.
    """
    for key in space.space:
        _check_key(key, space)
    _check_objectives(config, space, evaluated)
    check_searcher(space)
    for key, parameter in space.space.items():
        for value in parameter.choice or parameter.ends:
            _check_value(config, space, key, value)
    if space.has_default:
        default_values(space, config)
    _check_schedule(config, space)


def _check_key(key: str, space: Space) -> None:
    names = list(known_keys(RunConfig))
    known = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    if key not in known:
        match = nearest_key(key, known)
        hint = f"did you mean {match}?" if match else "use a key of the configuration, such as train.ratio.rate."
        raise ConfigError(f"space: unknown key {key}; {hint}")
    if any(key == fixed or key.startswith(fixed + ".") for fixed in FIXED):
        raise ConfigError(f"space: {key} does not change what a run computes; leave it out.")
    if space.scheduler == "pbt" and key not in MUTABLE:
        raise ConfigError(
            f"space: {key} cannot change within a run, but scheduler pbt changes values within a run; use scheduler "
            f"asha, or keys among {', '.join(MUTABLE)}."
        )


def _check_objectives(config: RunConfig, space: Space, evaluated: Callable[[], list[str]]) -> None:
    for place, objective in enumerate(space.objectives):
        known = [*AT_EVIDENCE, *AT_INTERVAL]
        if objective.metric.startswith(EVALUATED):
            known = evaluated()
            if place == 0 and space.scheduler != "none":
                raise ConfigError(
                    f"objectives: {objective.metric} is measured when a trial has finished, so scheduler "
                    f"{space.scheduler} cannot judge by it; list another objective first, or use scheduler none."
                )
        if objective.metric not in known:
            match = nearest_key(objective.metric, known)
            hint = f"did you mean {match}?" if match else f"there are {', '.join(known) or 'none of that kind'}."
            raise ConfigError(f"objectives: nothing reports {objective.metric}; {hint}")
        reasons = [why_never(one, objective.metric) for one in _some_trials(config, space)]
        if None not in reasons:
            raise ConfigError(
                f"objectives: no trial would report {objective.metric}, since {reasons[0]}; use another objective, or "
                "change that key in the configuration."
            )


def _some_trials(config: RunConfig, space: Space) -> list[RunConfig]:
    """The configuration itself, and with each end or choice of every key, as far as these are valid."""
    found = [config]
    for key, parameter in space.space.items():
        for value in parameter.choice or parameter.ends:
            with suppress(ConfigError):
                found.append(with_values(config, {key: value}, "space"))
    return found


def _check_value(config: RunConfig, space: Space, key: str, value: Any) -> None:
    """Requires that the value is valid with at least one combination of the other values."""
    rng, tree = np.random.default_rng(0), config.model_dump(mode="json")
    problem: ConfigError | None = None
    met = False
    for attempt in range(TRIES):

        def choose(name: str, parameter: Parameter, attempt: int = attempt) -> Any:
            if name == key:
                return value
            own = value_at(tree, name)
            return own if attempt == 0 and parameter.holds(own) else parameter.at(float(rng.random()))

        values = space.draw(choose)
        if key not in values:
            continue
        met = True
        try:
            trial_config(config, space, 0, 0, values)
        except ConfigError as error:
            problem = error
        else:
            return
    if not met:
        raise ConfigError(
            f"space.{key}: no trial would have it, since no values of earlier keys meet its `when`; change `when`."
        )
    assert problem is not None
    raise ConfigError(f"space.{key}: the value {value} cannot be used ({str(problem).removeprefix('trial 0: ')})")


def _check_schedule(config: RunConfig, space: Space) -> None:
    budget, every = config.train.max_samples, config.stages.evidence_every
    if space.scheduler == "pbt":
        if interval(space, config) % every:
            raise ConfigError(
                f"pbt.every_samples ({interval(space, config)}) must be a multiple of stages.evidence_every ({every})."
            )
        if interval(space, config) >= budget:
            raise ConfigError(f"pbt.every_samples must be below train.max_samples ({budget}).")
    if space.scheduler == "asha" and (space.asha.first_samples or 0) >= budget:
        raise ConfigError(
            f"asha.first_samples must be below train.max_samples ({budget}); otherwise no trial is stopped."
        )
    if config.ray.num_workers and (space.resources.cpus or space.resources.gpus):
        raise ConfigError(
            "resources.cpus and resources.gpus are for trials of one process; with ray.num_workers above 0 set "
            "ray.cpus_per_worker and ray.gpus_per_worker."
        )
