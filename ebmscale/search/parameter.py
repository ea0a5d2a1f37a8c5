"""The values that one key takes in a search: a choice or a range."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from ebmscale.config import Block

Range = tuple[float, float]
_KINDS = ("choice", "uniform", "loguniform", "integer")
_MOST_POINTS = 10_000


class Parameter(Block):
    """The values of one key: exactly one of `choice`, `uniform`, `loguniform` and `int`; ranges include their ends.

    With `when`, a trial has this key only if keys listed before it have one of the given values. A grid uses `points`
    values of a range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    choice: tuple[Any, ...] | None = None
    uniform: Range | None = None
    loguniform: Range | None = None
    integer: tuple[int, int] | None = Field(default=None, alias="int")
    when: dict[str, Any] = Field(default_factory=dict)
    points: Annotated[int, Field(ge=2, le=_MOST_POINTS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_block(cls, values: Any) -> Any:
        if isinstance(values, dict) and values and all(isinstance(inner, dict) for inner in values.values()):
            raise ValueError(
                "a key of the configuration is written as one word with dots, such as train.ratio.rate, and has one "
                "of choice, uniform, loguniform and int"
            )
        return values

    @model_validator(mode="after")
    def _is_one_kind(self) -> "Parameter":
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of choice, uniform, loguniform and int")
        if self.choice is not None:
            if not self.choice:
                raise ValueError("the choice is empty; list the values to try")
            if self.points is not None:
                raise ValueError("points is for a range, and a choice lists its values; leave points out")
            return self
        low, high = self.ends
        if low >= high:
            raise ValueError(f"the range [{low:g}, {high:g}] is empty; give [low, high] with low below high")
        if self.loguniform is not None and low <= 0:
            raise ValueError(f"a loguniform range must be above 0, but it begins at {low:g}")
        return self

    @property
    def ends(self) -> Range:
        """The least and the greatest value of a range."""
        ends = self.uniform or self.loguniform or self.integer
        assert ends is not None
        return ends

    @property
    def grid(self) -> Sequence[Any] | None:
        """The values in a grid; None for a range without `points`."""
        if self.choice is not None:
            return list(self.choice)
        low, high = self.ends
        if self.integer is not None and self.points is None:
            return range(int(low), int(high) + 1)
        if self.points is None:
            return None
        return list(dict.fromkeys(self.at(i / (self.points - 1)) for i in range(self.points)))

    def at(self, fraction: float) -> Any:
        """The value at a fraction in [0, 1] of the range or choice; a uniform random fraction gives a random value."""
        if self.choice is not None:
            return self.choice[min(int(fraction * len(self.choice)), len(self.choice) - 1)]
        low, high = self.ends
        if self.integer is not None:
            return min(int(low) + int(fraction * (high - low + 1)), int(high))
        if self.loguniform is not None:
            return self.rounded(math.exp(math.log(low) + fraction * (math.log(high) - math.log(low))))
        return self.rounded(low + fraction * (high - low))

    def rounded(self, value: float) -> float:
        """A value of a range rounded to four digits, so that tables show the exact value."""
        low, high = self.ends
        return min(max(float(f"{value:.4g}"), low), high)

    def holds(self, value: Any) -> bool:
        """Whether the range or choice contains this value."""
        if self.choice is not None:
            return self.place(value) is not None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.ends
        return low <= value <= high and (self.integer is None or float(value).is_integer())

    def place(self, value: Any) -> int | None:
        """The index of a value in the choice; None if it is not in it."""
        places = [i for i, one in enumerate(self.choice or ()) if _plain(one) == _plain(value)]
        return places[0] if places else None

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial with these values has this parameter."""
        for key, wanted in self.when.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            if key not in values or _plain(values[key]) not in [_plain(one) for one in allowed]:
                return False
        return True


def _plain(value: Any) -> Any:
    """Makes tuples equal to lists, and true unequal to 1."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return (bool, value) if isinstance(value, bool) else value
