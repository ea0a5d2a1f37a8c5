"""A key of the configuration: its meaning, its unit and whether it may change, stated where it is defined."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from ebmscale.config.keys import check_size, check_type

Positive = Annotated[int, Field(gt=0, lt=2**63)]
NonNegative = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

Change = Literal["never", "resume", "circumstance"]
"""When a key may change in a run. `never`: it defines what the run computes. `resume`: at a resume. `circumstance`:
at a resume too; it says where and by what means the run is computed, and not what."""


class Block(BaseModel):
    """A part of the configuration: frozen, unknown keys refused, and no value converted to another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_other_type(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        check_type(value, cls.model_fields[info.field_name].annotation)
        check_size(value)
        return value


def key(
    meaning: str, default: Any = ..., *, unit: str = "", change: Change = "never", mutable: bool = False, **limits: Any
) -> Any:
    """A key of a block.

    Args:
        meaning: one or two sentences, in Markdown.
        default: the default value; without one the key must be given.
        unit: of a number.
        change: when it may change in a run. For a block: of all its keys.
        mutable: whether population-based training may change it: checkpoints keep their shapes and their meaning.
        limits: what pydantic's `Field` takes (`ge`, `lt`, `pattern`, ...).
    """
    extra: dict[str, Any] = {"unit": unit, "change": change, "mutable": mutable}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def about(field: FieldInfo) -> dict[str, Any]:
    """What `key` states about a field besides its meaning: `unit`, `change`, `mutable`."""
    extra = field.json_schema_extra
    return {"unit": "", "change": "never", "mutable": False} | (extra if isinstance(extra, dict) else {})


def block_of(field: FieldInfo) -> type[Block] | None:
    """The block that a field holds, None for a plain value."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Block)), None)


def keys_that_change(block: type[Block], changes: tuple[Change, ...], prefix: str = "") -> Iterator[str]:
    """The dotted keys of blocks and of single fields that may change in one of these ways."""
    for name, field in block.model_fields.items():
        inner = block_of(field)
        if about(field)["change"] in changes:
            yield prefix + (field.alias or name)
        elif inner is not None:
            yield from keys_that_change(inner, changes, f"{prefix}{name}.")


def mutable_keys(block: type[Block], prefix: str = "") -> Iterator[str]:
    """The dotted keys that population-based training may change."""
    for name, field in block.model_fields.items():
        inner = block_of(field)
        if inner is not None:
            yield from mutable_keys(inner, f"{prefix}{name}.")
        elif about(field)["mutable"]:
            yield prefix + (field.alias or name)
