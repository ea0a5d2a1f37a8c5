"""Every key of a configuration with its meaning, unit, default and values, from the descriptions of the fields."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from ebmscale.config.allowed import allowed
from ebmscale.config.fields import Block, about, block_of
from ebmscale.config.keys import nearest_key
from ebmscale.config.run_config import RunConfig
from ebmscale.documents import excerpt
from ebmscale.errors import ConfigError

HEAD = "| key | default | meaning | at a resume |\n|---|---|---|---|"


class KeyRow(NamedTuple):
    """A key of the configuration.

    Attributes:
        name: with dots.
        meaning: one or two sentences, in Markdown.
        default: as YAML shows it, with its unit; `needed` if the key has none.
        values: what the key takes, in words.
        choices: the values where they are few, else nothing.
        may_change: whether a resumed run may have another value.
    """

    name: str
    meaning: str
    default: str
    values: str
    choices: tuple[str, ...]
    may_change: bool


@cache
def key_rows() -> tuple[KeyRow, ...]:
    """All keys, in the order of the schema."""
    return tuple(_rows(RunConfig, RunConfig.model_json_schema(), "", False))


def find_keys(prefix: str) -> list[KeyRow]:
    """The keys that begin with `prefix`; if there are none, those whose last part begins with it.

    Raises:
        ConfigError: there are none; the sentence names the nearest key.
    """
    rows = [row for row in key_rows() if row.name.startswith(prefix)]
    rows = rows or [row for row in key_rows() if row.name.rpartition(".")[2].startswith(prefix)]
    if rows:
        return rows
    match = nearest_key(prefix, [row.name for row in key_rows()])
    blocks = dict.fromkeys(row.name.partition(".")[0] for row in key_rows())
    hint = f"did you mean {match}?" if match else f"keys begin with {', '.join(blocks)}."
    raise ConfigError(f"no key begins with {excerpt(prefix)}; {hint}")


def key_tables() -> str:
    """A section in Markdown for the keys of the run and one for each block, with a table each."""
    lines = ["### Of the run itself", "", HEAD, *(_line(row) for row in key_rows() if "." not in row.name), ""]
    for name, field in RunConfig.model_fields.items():
        block = block_of(field)
        if block is not None:
            rows = [row for row in key_rows() if row.name.startswith(f"{name}.")]
            lines += [f"### `{name}`", "", _sentence(block), "", HEAD, *map(_line, rows), ""]
    return "\n".join(lines)


def _rows(block: type[Block], schema: dict[str, Any], prefix: str, free: bool) -> Iterator[KeyRow]:
    own = schema if block is RunConfig else schema["$defs"][block.__name__]
    for name, field in block.model_fields.items():
        inner, may_change = block_of(field), free or about(field)["change"] != "never"
        if inner is not None:
            yield from _rows(inner, schema, f"{prefix}{name}.", may_change)
            continue
        unit = about(field)["unit"]
        default = "needed" if field.is_required() else _shown(field.default) + (f" {unit}" if unit else "")
        values = allowed(own["properties"][field.alias or name])
        yield KeyRow(
            prefix + (field.alias or name), field.description or "", default, values, _choices(field), may_change
        )


def _line(row: KeyRow) -> str:
    """The row of a table; the values stand before the meaning if the meaning does not name them all."""
    named = all(f"`{value}`" in row.meaning for value in row.choices) or row.values == "true or false"
    values = "" if named else f"{', '.join(row.choices)}. "
    change = "may change" if row.may_change else "fixed"
    return f"| `{row.name}` | {row.default} | {values}{row.meaning} | {change} |"


def _choices(field: FieldInfo) -> tuple[str, ...]:
    if field.annotation is bool:
        return ("true", "false")
    return tuple(map(str, get_args(field.annotation))) if get_origin(field.annotation) is Literal else ()


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _sentence(block: type[Block]) -> str:
    return (block.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
