"""Configurations from files, texts and values, and what differs between two of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ebmscale.config.keys import first_problem, known_keys, value_at
from ebmscale.config.overrides import apply_override, set_key
from ebmscale.config.presets import file_of
from ebmscale.config.removed import drop_removed, new_name, rename
from ebmscale.config.run_config import RESUMABLE, RunConfig
from ebmscale.documents import load_yaml, read_yaml
from ebmscale.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> RunConfig:
    """Reads the configuration of a run.

    Args:
        path: of a YAML file, or `preset:NAME` for one that comes with the package, such as `preset:digits`.
        overrides: changes as on the command line, such as `["train.max_samples=20000"]`; they are applied last.
        values: Python values by dotted key, such as `{"train.max_samples": 20000}`; applied before `overrides`.

    Raises:
        ConfigError: the file is missing or is not YAML, a key is unknown, a value has the wrong type or range.

    Example:
        >>> config = ebmscale.load_config("preset:digits", ["run.name=first", "train.max_samples=20000"])
    """
    tree = load_yaml(file_of(path, ""), f"the configuration {path}", ConfigError)
    return _from_tree(tree, values or {}, overrides, str(path))


def parse_config(text: str | bytes, overrides: Sequence[str] = (), source: str = "configuration") -> RunConfig:
    """`load_config` from the text itself; `source` names it in errors."""
    return _from_tree(read_yaml(text, source, ConfigError), {}, overrides, source)


def config_of(tree: Any, source: str) -> RunConfig:
    """The configuration from its plain values, as `model_dump(mode="json")` gives them; `source` names it in errors.

    Raises:
        ConfigError: a key is unknown or missing, a value has the wrong type or range.
    """
    return _from_tree(tree, {}, (), source)


def with_values(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    """The configuration with other values of dotted keys; `source` names them in errors.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type or range, or they do not go together.
    """
    return _from_tree(config.model_dump(), values, (), source)


def _from_tree(tree: Any, values: Mapping[str, Any], overrides: Sequence[str], source: str) -> RunConfig:
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must hold a mapping of keys, not a {type(tree).__name__}.")
    rename(tree, source)
    for name, value in values.items():
        set_key(tree, new_name(name), value)
    for override in overrides:
        apply_override(tree, override, RunConfig)
    drop_removed(tree, source)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error, list(known_keys(RunConfig)))}") from None


def changed_keys(old: RunConfig, new: RunConfig, allowed: Sequence[str] = RESUMABLE) -> list[str]:
    """Dotted keys whose values differ and that are not allowed to change: they forbid resuming `old` as `new`.

    A new `precision` and a new `stages.updates_per_batch` of `auto` count as the old ones.
    """
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    if new.precision == "auto":
        after["precision"] = before["precision"]
    if new.stages.updates_per_batch == "auto":
        after["stages"]["updates_per_batch"] = before["stages"]["updates_per_batch"]
    names = list(known_keys(RunConfig))
    return [
        name
        for name in names
        if not any(other.startswith(f"{name}.") for other in names)
        and value_at(before, name) != value_at(after, name)
        and not any(name == a or name.startswith(a + ".") for a in allowed)
    ]
