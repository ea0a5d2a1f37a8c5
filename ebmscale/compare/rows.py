"""What a comparison is: a file of rows, each a few keys that change a shared configuration, and its runs."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ebmscale.address import Address
from ebmscale.config import (
    Block,
    NonNegative,
    Positive,
    PositiveFloat,
    RunConfig,
    first_problem,
    known_keys,
    load_config,
)
from ebmscale.config.presets import file_of
from ebmscale.documents import load_yaml
from ebmscale.errors import ConfigError

Settings = dict[str, Any]
METHOD_ROWS: dict[str, Settings] = {
    "gaussian": {"method": "gaussian"},
    "lebm": {
        "method": "lebm",
        "prior.num_steps": 60,
        "prior.step_size": 0.4,
        "prior.sample_steps": 60,
        "stages.updates_per_batch": 1,
    },
    "nce": {"method": "nce"},
    "tre": {"method": "tre"},
    "adaptive": {"method": "adaptive"},
}
"""The rows of a comparison that is only a training configuration: every method, and LEBM with its authors' chains."""


class BudgetBlock(Block):
    """What every row may use: `samples`, or `cpu_s` seconds of processor time, as a dry run of each row forecasts."""

    samples: Positive | None = None
    cpu_s: PositiveFloat | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "BudgetBlock":
        if self.samples is not None and self.cpu_s is not None:
            raise ValueError("give samples or cpu_s, not both")
        return self


class EvaluationBlock(Block):
    """What is measured on every row's final checkpoint, as `ebmscale evaluate` does it.

    Without a `split` the test part is measured, or the validation part if the set has no test part. `features` are one
    or several: precision, recall, density and coverage are of the first. `num_samples` is a number for all metrics, or
    a mapping from metrics to numbers. The metrics in `first_seed_only` are measured on the first seed of a row alone,
    since they take long and differ little between seeds. With `by_stage`, distance and nats of that seed are measured
    under p_0, p_1, ... too.
    """

    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("reconstruction", "frechet")
    split: Literal["test", "validation"] | None = None
    features: Address | tuple[Address, ...] | None = None
    num_samples: Positive | dict[str, Positive] | None = None
    first_seed_only: tuple[str, ...] = ()
    by_stage: bool = False

    def of_seed(self, is_first: bool) -> "EvaluationBlock":
        """What is measured on a run of the first seed, or of a later one."""
        kept = tuple(one for one in self.metrics if is_first or one not in self.first_seed_only)
        by_stage = is_first and self.by_stage
        return self.model_copy(update={"metrics": kept, "first_seed_only": (), "by_stage": by_stage})

    def of_metrics(self, metrics: Collection[str]) -> "EvaluationBlock":
        """Only those of these metrics that are measured."""
        kept = tuple(one for one in self.metrics if one in metrics)
        return self.model_copy(update={"metrics": kept, "by_stage": False})

    @property
    def of_stages(self) -> "EvaluationBlock":
        """What is measured of earlier stages: distance and nats, in the first features."""
        kept = self.of_metrics(("frechet", "latents"))
        return kept.model_copy(update={"features": next(iter(self.all_features), None)})

    @property
    def all_features(self) -> tuple[Address, ...]:
        """The features, one after another."""
        found = self.features
        return () if found is None else found if isinstance(found, tuple) else (found,)

    @property
    def counts(self) -> dict[str, int]:
        """The largest number of images by metric, of the metrics that have one."""
        found = self.num_samples
        if found is None or isinstance(found, dict):
            return dict(found or {})
        return dict.fromkeys(self.metrics, found)

    @property
    def options(self) -> list[str]:
        """The options of the command `evaluate` that measures this."""
        arguments = ["--metrics", ",".join(self.metrics), "--split", str(self.split)]
        for one in self.all_features:
            arguments += ["--features", one]
        if self.counts:
            arguments += ["--num-samples", ",".join(f"{metric}={num}" for metric, num in self.counts.items())]
        return arguments


class Comparison(Block):
    """A comparison: rows by name, each a few dotted keys that change the configuration `config`.

    `set` holds dotted keys for all rows; `config` is `preset:NAME`, or a path relative to this file. Names of rows have
    no commas, as a command lists rows with commas.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    config: str
    about: str = ""
    set: Settings = Field(default_factory=dict)
    rows: Annotated[dict[Annotated[str, Field(pattern=r"^[^,]+$")], Settings], Field(min_length=1)]
    budget: BudgetBlock = BudgetBlock()
    evaluation: EvaluationBlock = EvaluationBlock()

    @property
    def chooses_metrics(self) -> bool:
        """Whether the file says what is measured."""
        return "metrics" in self.evaluation.model_fields_set

    first_seed: NonNegative = 0


@dataclass(frozen=True)
class Job:
    """One row and seed: the configuration of its run, which lives in the comparison's storage."""

    row: str
    config: RunConfig


def load_comparison(path: str) -> Comparison:
    """Reads a file of rows. A training configuration stands for one row for each method, measured by reconstruction.

    Raises:
        ConfigError: it is missing, is not YAML, or has unknown keys or no rows.
    """
    file = file_of(path, "compare", "")
    tree = load_yaml(file, f"the comparison {path}", ConfigError)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping with name, config and rows; see configs/compare/ for examples.")
    if "run" in tree and "rows" not in tree:
        rows: dict[str, Any] = {"name": file.stem, "config": file.name, "rows": METHOD_ROWS}
        of_latents = _form_of(tree) == "identity"
        tree = rows | ({} if of_latents else {"evaluation": {"metrics": ["reconstruction"]}})
    try:
        return Comparison.model_validate(tree)
    except ValidationError as error:
        problem = first_problem(error, list(known_keys(Comparison)))
        raise ConfigError(f"{path}: {problem} See configs/compare/ for examples.") from None


def _form_of(tree: dict[str, Any]) -> Any:
    """The form of the generator in a training configuration."""
    for key in ("model", "generator"):
        tree = tree.get(key) or {}
        if not isinstance(tree, dict):
            return None
    return tree.get("form")


def with_features(comparison: Comparison, features: str | None) -> Comparison:
    """The comparison with the Frechet distance in these features as an additional metric."""
    if features is None:
        return comparison
    metrics = tuple(dict.fromkeys((*comparison.evaluation.metrics, "frechet")))
    evaluation = comparison.evaluation.model_copy(update={"features": Address(features), "metrics": metrics})
    return comparison.model_copy(update={"evaluation": evaluation})


def make_jobs(path: str, methods: Sequence[str] | None, num_seeds: int, overrides: Sequence[str]) -> list[Job]:
    """The runs of a comparison, seed by seed, every configuration checked.

    Args:
        path: of the comparison.
        methods: names of rows; None takes all.
        num_seeds: seeds of each row.
        overrides: `key=value` for all rows, stronger than the file.

    Raises:
        ConfigError: there is no such row, an override is a key that a comparison sets, or a row's configuration is
            wrong.
    """
    comparison = load_comparison(path)
    unknown = [name for name in methods or () if name not in comparison.rows]
    if unknown:
        raise ConfigError(f"{path} has no row {unknown[0] or repr('')}; its rows are {', '.join(comparison.rows)}.")
    own = {override.partition("=")[0].strip() for override in overrides} & {"run.seed", "run.name"}
    if own:
        raise ConfigError(
            f"A comparison gives each run its {' and its '.join(sorted(own))}; use --seeds, and first_seed and name in "
            f"{path}."
        )
    rows = list(dict.fromkeys(methods or comparison.rows))
    names = dict[str, str]()
    for row in rows:
        first = names.setdefault(_name_of(row), row)
        if first != row:
            raise ConfigError(f"{path}: the rows {first} and {row} would share the folder of one run; rename one.")
    seeds = range(comparison.first_seed, comparison.first_seed + num_seeds)
    return [_job(path, comparison, row, seed, overrides) for seed in seeds for row in rows]


def _name_of(row: str) -> str:
    """The row's name as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", row)


def _job(path: str, comparison: Comparison, row: str, seed: int, overrides: Sequence[str]) -> Job:
    settings = comparison.set | comparison.rows[row]
    if comparison.budget.samples is not None:
        settings = settings | {"train.max_samples": comparison.budget.samples}
    own = [f"run.seed={seed}", f"run.name={_name_of(row)}-seed{seed}"]
    try:
        config = load_config(
            file_of(path, "compare", "").parent / file_of(comparison.config, ""), [*overrides, *own], settings
        )
    except ConfigError as error:
        raise ConfigError(f"row {row} of {path}: {error}") from None
    storage = config.storage.model_copy(update={"url": config.storage.url.below(f"compare-{comparison.name}")})
    return Job(row, config.model_copy(update={"storage": storage}))
