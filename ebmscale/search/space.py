"""The space of a search: the file given with `--space`, with the same strict checks as a run's configuration.

space:
  posterior.start: {choice: [base, encoder]}
  posterior.num_steps: {int: [5, 40], when: {posterior.start: base}}     # only if the key above has this value
  train.ratio.rate: {loguniform: [1.0e-4, 1.0e-2]}
objectives: [{metric: held_out_mse, direction: min}]
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ebmscale.address import Address, clean
from ebmscale.config import Block, Fraction, NonNegative, Positive, PositiveFloat, first_problem
from ebmscale.config.presets import file_of
from ebmscale.config.removed import with_new_names
from ebmscale.documents import load_yaml
from ebmscale.errors import ConfigError
from ebmscale.search.parameter import Parameter


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
