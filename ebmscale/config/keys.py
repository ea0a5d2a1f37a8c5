"""Dotted keys of a configuration: overrides, what is known, and what was probably meant."""

import difflib
import types
from collections.abc import Iterator, Sequence
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ebmscale.errors import ConfigError


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one dotted key of the tree, as `key=value` says; a ConfigError where it cannot be read."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"cannot read the override '{override}': write it as key=value, e.g. train.batch_size=64.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of the override '{override}' is not valid YAML.") from None
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"the override '{override}' needs {parent} to hold keys, but it holds a value.")
        node = child
    node[last] = value


def first_problem(error: ValidationError, known: Sequence[str]) -> str:
    """A sentence on the first problem found in a file whose keys are `known` ones."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        match, blocks = nearest_key(key, known), dict.fromkeys(name.partition(".")[0] for name in known)
        hint = f"did you mean {match}?" if match else f"known keys start with {', '.join(blocks)}."
        return f"unknown key {key}; {hint}"
    if problem["type"] == "missing":
        return f"the key {key} is missing and has no default; add it."
    if key == "precision":
        return f"precision {problem['input']} is not offered: fp16 overflows and has no CPU kernels; use bf16 or fp32."
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if problem["type"] == "value_error" else f", but it is {problem['input']!r}"
    return f"{key}: {message}{given}." if key else f"{message}."


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that looks most like this one, or has nearly its last name; None where none does."""
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if match:
        return match[0]
    named = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}  # right name, wrong block
    match = difflib.get_close_matches(key.rsplit(".", 1)[-1], named, n=1)
    return named[match[0]] if match else None


def known_keys(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, blocks and leaves."""
    for name, field in block.model_fields.items():
        yield prefix + name
        for kind in _alternatives(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from known_keys(kind, f"{prefix}{name}.")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def value_at(tree: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        tree = tree[part]
    return tree
