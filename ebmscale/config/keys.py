"""Dotted keys of a configuration: the known ones, the one that was probably meant, and the values of a field."""

import difflib
import math
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

from ebmscale.documents import excerpt

_WRONG_TYPE: dict[type, Literal["int_type", "float_type", "bool_type"]] = {
    int: "int_type",
    float: "float_type",
    bool: "bool_type",
}
_PLAIN_WORDS = {
    "tuple_type": "input should be a list",
    "dict_type": "input should be a mapping of keys",
    "model_type": "input should be a mapping of keys",
    "too_short": "input should have {min_length} or more entries",
    "too_long": "input should have {max_length} or fewer entries",
    "int_from_float": "input should be a whole number",
    "int_parsing_size": "input is too large",
}
"""What pydantic says in words of Python, by its name for the problem."""
_SMALLEST, _LARGEST = 1e-100, 1e100  # of numbers other than 0; a float holds their squares


def first_problem(error: ValidationError, known: Sequence[str]) -> str:
    """A sentence about the first problem of a file; `known` are the keys that it may have."""
    problems = error.errors()
    unknown = [one for one in problems if one["type"] == "extra_forbidden"]
    # a required key that is misspelt is missing and unknown
    problem = unknown[0] if unknown and problems[0]["type"] == "missing" else problems[0]
    key = excerpt(".".join(str(part) for part in problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return _unknown(key, str(problem["loc"][-1]), known)
    if problem["type"] == "missing":
        return f"the key {key} is missing and has no default; add it."
    if key == "precision":
        given = excerpt(str(problem["input"]))
        return f"precision {given} is not offered: fp16 overflows and has no CPU kernels; use bf16 or fp32."
    if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float):
        given = "true or false" if isinstance(problem["input"], bool) else f"the number {problem['input']}"
        return f"{key}: text is needed, but it is {given}; put the text in quotes."
    if ways := _alternatives_of(error):
        field = excerpt(".".join(str(part) for part in ways[0]["loc"][:-1]))
        *first, last = dict.fromkeys(way["msg"].removeprefix("Input should be ").partition(",")[0] for way in ways)
        return f"{field}: input should be {', '.join(first)} or {last}, but it is {excerpt(repr(problem['input']))}."
    words = _PLAIN_WORDS.get(problem["type"])
    message = words.format(**problem.get("ctx", {})) if words else problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if problem["type"] == "value_error" else f", but it is {excerpt(repr(problem['input']))}"
    return f"{key}: {message}{given}." if key else f"{message}."


def _unknown(key: str, word: str, known: Sequence[str]) -> str:
    """What to say of a dotted key that is unknown, and whose last word is this."""
    if "." in word and key in known:
        return f"the key {key} is written as one word; write {key.replace('.', ': {')}: ...{'}' * key.count('.')}."
    match, blocks = nearest_key(key, known), dict.fromkeys(name.partition(".")[0] for name in known)
    hint = f"did you mean {match}?" if match else f"known keys start with {', '.join(blocks)}."
    return f"unknown key {key}; {hint}"


def _alternatives_of(error: ValidationError) -> list[ErrorDetails]:
    """The problems of the first wrong key, one for each type that it may have, where one of these is a word."""
    problems = error.errors()
    field = problems[0]["loc"][:-1]
    found = [one for one in problems if one["loc"][:-1] == field]
    has_word = any(str(part).startswith("literal[") for one in found for part in one["loc"][-1:])
    return found if has_word and len(found) > 1 else []


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that is most similar to this one, by its whole name or its last part; None if none is."""
    key = key.lower()  # as all known ones are
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if match:
        return match[0]
    named = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}  # right name, wrong block
    match = difflib.get_close_matches(key.rsplit(".", 1)[-1], named, n=1)
    return named[match[0]] if match else None


def known_keys(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, blocks and leaves."""
    for name, field in block.model_fields.items():
        yield prefix + (field.alias or name)
        for inner in nested_blocks(field.annotation):
            yield from known_keys(inner, f"{prefix}{name}.")


def nested_blocks(annotation: Any) -> list[type[BaseModel]]:
    """The blocks that a field of this annotation may hold."""
    kinds = _alternatives(annotation)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def field_types(annotation: Any) -> frozenset[type]:
    """The types of what a field of this annotation may hold: str, int, float, bool, NoneType, a container, a block.

    A field of any value has the type `object`. An address is text.
    """
    found: set[type] = set()
    for kind in _alternatives(annotation):
        if get_origin(kind) is Literal:
            found |= {type(value) for value in get_args(kind)}
        else:
            outer = get_origin(kind) or kind
            found.add(_plain(outer) if isinstance(outer, type) else object)
    return frozenset(found)


def _plain(kind: type) -> type:
    """`str` for a kind of text such as an address, else the type itself."""
    return str if issubclass(kind, str) else kind


def check_type(value: Any, annotation: Any) -> None:
    """Refuses a value that pydantic would change to another type: text for a number, a number for true or false.

    A whole number may be written as 1e6. Lists are checked member by member; blocks check themselves.

    Raises:
        PydanticKnownError: the value has another type.
    """
    if isinstance(value, list | tuple):
        members = [member for kind in _alternatives(annotation) for member in get_args(kind) if member is not Ellipsis]
        if members:
            for one in value:
                check_type(one, Union[tuple(members)])  # noqa: UP007 (a union of what is only known now)
        return
    types = field_types(annotation)
    if object in types or not isinstance(value, str | bool | int | float):
        return
    if (isinstance(value, str) and str not in types) or (isinstance(value, bool) and bool not in types):
        for kind, problem in _WRONG_TYPE.items():
            if kind in types:
                raise PydanticKnownError(problem)
    elif not isinstance(value, str | bool) and bool in types and not types & {int, float}:
        raise PydanticKnownError("bool_type")


def check_size(value: Any) -> None:
    """Refuses a number whose square a float cannot hold.

    Raises:
        ValueError: it is that large, or that near to 0.
    """
    if not isinstance(value, int | float) or not value or (isinstance(value, float) and not math.isfinite(value)):
        return
    if not _SMALLEST < abs(value) < _LARGEST:
        raise ValueError(f"{excerpt(repr(value))} is too {'large' if abs(value) > 1 else 'near to 0'} to compute with")


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself, without what is annotated."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return [annotation]


def value_at(tree: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        tree = tree[part]
    return tree
