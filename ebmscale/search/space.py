"""The space of a search: the file given with `--space`, with the same strict checks as a run's configuration.

space:
  posterior.start: {choice: [base, encoder]}
  posterior.num_steps: {int: [5, 40], when: {posterior.start: base}}     # only if the key above has this value
  train.ratio.rate: {loguniform: [1.0e-4, 1.0e-2]}
objectives: [{metric: held_out_mse, direction: min}]
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ebmscale.address import Address, clean
from ebmscale.config import Block, Fraction, NonNegative, Positive, PositiveFloat, first_problem
from ebmscale.config.presets import file_of
from ebmscale.config.removed import with_new_names
from ebmscale.documents import load_yaml
from ebmscale.errors import ConfigError

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


class Objective(Block):
    """A quantity to minimise or maximise: the `last` or `best` value of a reported metric in a trial.

    With `reach` it is the time to a target instead: the samples seen when the metric first reached that value.
    """

    metric: str
    direction: Literal["min", "max"]
    over: Literal["last", "best"] = "last"
    reach: float | None = None

    @property
    def name(self) -> str:
        """The name in tables."""
        return self.metric if self.reach is None else f"samples until {self.metric} {self.reach:g}"

    @property
    def sign(self) -> int:
        """1 if smaller values of the objective are better, else -1."""
        return 1 if self.direction == "min" or self.reach is not None else -1

    def reached(self, value: float) -> bool:
        """Whether a value of the metric is as good as the target."""
        assert self.reach is not None
        return value <= self.reach if self.direction == "min" else value >= self.reach


class ResourcesBlock(Block):
    """The resources of a trial in one process; by default `ray.cpus_per_worker`, and a GPU according to `device`.

    Trials of several workers use the configuration's `ray` block. As many trials run at a time as the cluster has
    resources for, and at most `max_trials`.
    """

    cpus: PositiveFloat | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    max_trials: Positive | None = None


class AshaBlock(Block):
    """Asynchronous successive halving, with samples as its clock.

    The rungs are at `first_samples`, `first_samples` * `reduction`, `first_samples` * `reduction`^2, and so on. At a
    rung a trial continues only if it is among the best 1/`reduction` of those that reached it. By default
    `first_samples` is a ninth of a trial's budget.
    """

    first_samples: Positive | None = None
    reduction: Annotated[float, Field(ge=1.1)] = 3.0


class PbtBlock(Block):
    """Population-based training.

    Trials are compared every `every_samples` samples, by default a tenth of the budget. A trial among the worst
    `quantile` takes over the checkpoint and the values of one among the best `quantile`. Then each value changes: with
    probability `resample` it is drawn again; otherwise it is multiplied by 0.8 or 1.2, or moves to a neighbour in a
    choice.
    """

    every_samples: Positive | None = None
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    resample: Fraction = 0.25


class EvaluateBlock(Block):
    """The images and features for objectives that begin with `evaluate/`, measured when a trial has finished.

    `features` is an address; only the Frechet distance uses it. The test split is for the winner, not for the search.
    """

    split: Literal["validation", "train"] = "validation"
    num_samples: Positive | None = None
    features: Address | None = None
    seed: NonNegative = 0


class Space(Block):
    """The whole file.

    Attributes:
        searcher: how values are chosen; optuna uses the trials that are done (TPE).
        scheduler: stops or changes running trials, by the first objective.
        num_trials: the number of trials; by default a grid has all its points.
        default_first: whether the first trial has the configuration's own values (not for a grid); ASHA never stops
            it, so that the others can be compared with it.
        overrides: keys of the configuration that are the same in all trials.
        max_failures: the number of deaths of a trial's process without progress that the search accepts.
    """

    searcher: Literal["random", "grid", "optuna"] = "random"
    scheduler: Literal["none", "asha", "pbt"] = "none"
    num_trials: Positive | None = None
    seed: NonNegative = 0
    default_first: bool = True
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]
    overrides: dict[str, Any] = Field(default_factory=dict)
    resources: ResourcesBlock = ResourcesBlock()
    asha: AshaBlock = AshaBlock()
    pbt: PbtBlock = PbtBlock()
    evaluate: EvaluateBlock = EvaluateBlock()
    max_failures: NonNegative = 3
    space: Annotated[dict[str, Parameter], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _with_present_names(cls, values: Any) -> Any:
        """Keys of earlier versions get their present names."""
        if isinstance(values, dict):
            values = {name: with_new_names(part) for name, part in values.items()}
        return values

    @model_validator(mode="after")
    def _is_in_order(self) -> "Space":
        seen: set[str] = set()
        for key, parameter in self.space.items():
            for condition in parameter.when:
                if condition not in seen:
                    raise ValueError(f"{key} depends on {condition}, which must be a key of the space listed before it")
            seen.add(key)
        both = seen & set(self.overrides)
        if both:
            raise ValueError(f"{min(both)} is in the space and in the overrides; leave it out of one")
        if len({objective.name for objective in self.objectives}) < len(self.objectives):
            raise ValueError("an objective is listed twice")
        if self.num_trials is None and self.searcher != "grid":
            raise ValueError("num_trials is missing; set it to the number of trials")
        return self

    @property
    def has_default(self) -> bool:
        """Whether trial 0 has the configuration's own values."""
        return self.default_first and self.searcher != "grid"

    def draw(self, choose: Callable[[str, Parameter], Any]) -> dict[str, Any]:
        """The values of a trial: `choose` returns one for every parameter that is active given the values before it."""
        values: dict[str, Any] = {}
        for key, parameter in self.space.items():
            if parameter.applies(values):
                values[key] = choose(key, parameter)
        return values

    def dump(self) -> dict[str, Any]:
        """The space as plain values, for `parse_space`."""
        tree = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        overrides = {key: clean(value) if isinstance(value, str) else value for key, value in tree["overrides"].items()}
        return tree | {"overrides": overrides}


_BLOCKS = (Space, Objective, ResourcesBlock, AshaBlock, PbtBlock, EvaluateBlock, Parameter)
_KEYS = [field.alias or name for block in _BLOCKS for name, field in block.model_fields.items()]


def load_space(path: str | Path) -> Space:
    """Reads a space from a YAML file, or from `preset:tune/NAME`.

    Raises:
        ConfigError: the file is missing or is not YAML, a key is unknown, a value is wrong, or a range is empty.
    """
    return parse_space(load_yaml(file_of(path, "tune"), f"the space {path}", ConfigError), str(path))


def parse_space(tree: Any, source: str = "space") -> Space:
    """`load_space` from plain values; `source` names them in errors."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must hold a mapping of keys, not a {type(tree).__name__}.")
    try:
        return Space.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error, _KEYS)}") from None


def _plain(value: Any) -> Any:
    """Makes tuples equal to lists, and true unequal to 1."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return (bool, value) if isinstance(value, bool) else value
