"""Every key of a configuration as a table in Markdown, from the descriptions of the fields."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from ebmscale.config.fields import Block, about, block_of
from ebmscale.config.run_config import RunConfig

HEAD = "| key | default | meaning | at a resume |\n|---|---|---|---|"


def key_tables() -> str:
    """A section for the keys of the run and one for each block, with a table each."""
    alone = [name for name, field in RunConfig.model_fields.items() if block_of(field) is None]
    rows = [_row(name, RunConfig.model_fields[name], False) for name in alone]
    parts = ["### Of the run itself", "", HEAD, *rows, ""]
    for name, field in RunConfig.model_fields.items():
        inner = block_of(field)
        if inner is not None:
            free = about(field)["change"] != "never"
            parts += [f"### `{name}`", "", _sentence(inner), "", HEAD, *_rows(inner, f"{name}.", free), ""]
    return "\n".join(parts)


def _rows(block: type[Block], prefix: str, free: bool) -> Iterator[str]:
    for name, field in block.model_fields.items():
        inner = block_of(field)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}.", free or about(field)["change"] != "never")
        else:
            yield _row(prefix + name, field, free)


def _row(name: str, field: FieldInfo, free: bool) -> str:
    unit = about(field)["unit"]
    default = "needed" if field.is_required() else _shown(field.default) + (f" {unit}" if unit else "")
    change = "may change" if free or about(field)["change"] != "never" else "fixed"
    return f"| `{name}` | {default} | {_choices(field)}{field.description} | {change} |"


def _choices(field: FieldInfo) -> str:
    """The allowed values, where the meaning does not name them all."""
    if get_origin(field.annotation) is not Literal:
        return ""
    values = [str(value) for value in get_args(field.annotation)]
    if all(f"`{value}`" in (field.description or "") for value in values):
        return ""
    return f"{', '.join(values)}. "


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
