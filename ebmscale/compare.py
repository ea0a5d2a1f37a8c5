"""Methods side by side: the same data, budget and evaluation for every row, several seeds, one table.

A comparison is a file of rows. Each row changes a shared training configuration, and is trained and evaluated by the
commands `train` and `evaluate` in processes of their own, so a row is exactly what a person would get who ran it. What
is done is kept in the storage: the same command goes on where it was stopped.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from ebmscale.config import (
    CIRCUMSTANCES,
    Block,
    NonNegative,
    Positive,
    PositiveFloat,
    RunConfig,
    changed_keys,
    first_problem,
    known_keys,
    load_config,
)
from ebmscale.errors import ConfigError, Interrupted
from ebmscale.evaluate.comparison import PAGE_FILE, Result, write_comparison
from ebmscale.evaluate.features import Features, open_features
from ebmscale.evaluate.metrics import FOLDER, check_metrics
from ebmscale.storage import Storage, open_storage
from ebmscale.training.metrics import METRICS_FILE, read_lines
from ebmscale.training.run import run_storage, saved_config

PILOT_FILE = "budget.json"
STOPPED = "Stopped; what is done is kept: run the same command to go on."
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
"""The rows of a comparison that is given as a training configuration: every method, LEBM with its authors' chains."""


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
    """What is measured on every row's final checkpoint, as `ebmscale evaluate` does it."""

    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("reconstruction", "frechet")
    split: Literal["test", "validation"] = "test"
    features: str | None = None
    num_samples: Positive | None = None


class Comparison(Block):
    """A comparison: rows by name, each a few dotted keys that change the configuration `config`.

    `set` holds dotted keys for all rows; `config` is a path relative to this file.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    config: str
    about: str = ""
    set: Settings = Field(default_factory=dict)
    rows: Annotated[dict[str, Settings], Field(min_length=1)]
    budget: BudgetBlock = BudgetBlock()
    evaluation: EvaluationBlock = EvaluationBlock()
    first_seed: NonNegative = 0


@dataclass(frozen=True)
class Job:
    """One row and seed: the configuration of its run, which lives in the comparison's storage."""

    row: str
    config: RunConfig


def load_comparison(path: str) -> Comparison:
    """Reads a file of rows; a training configuration stands for one row a method, measured by its reconstruction.

    Raises:
        ConfigError: it is missing, is not YAML, or has unknown keys or no rows.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the comparison {path}: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping with name, config and rows; see configs/compare/ for examples.")
    if "run" in tree and "rows" not in tree:
        file = Path(path)
        rows: dict[str, Any] = {"name": file.stem, "config": file.name, "rows": METHOD_ROWS}
        tree = rows | {"evaluation": {"metrics": ["reconstruction"]}}
    try:
        return Comparison.model_validate(tree)
    except ValidationError as error:
        problem = first_problem(error, list(known_keys(Comparison)))
        raise ConfigError(f"{path}: {problem} See configs/compare/ for examples.") from None


def with_features(comparison: Comparison, features: str | None) -> Comparison:
    """The comparison with the Frechet distance in these features among what is measured."""
    if features is None:
        return comparison
    metrics = tuple(dict.fromkeys((*comparison.evaluation.metrics, "frechet")))
    evaluation = comparison.evaluation.model_copy(update={"features": features, "metrics": metrics})
    return comparison.model_copy(update={"evaluation": evaluation})


def make_jobs(path: str, methods: Sequence[str] | None, num_seeds: int, overrides: Sequence[str]) -> list[Job]:
    """The runs of a comparison, seed by seed, every configuration checked.

    Args:
        path: of the comparison.
        methods: names of rows; None takes all.
        num_seeds: seeds of each row.
        overrides: `key=value` for all rows, stronger than the file.

    Raises:
        ConfigError: there is no such row, or a row's configuration is wrong.
    """
    comparison = load_comparison(path)
    unknown = [name for name in methods or () if name not in comparison.rows]
    if unknown:
        raise ConfigError(f"{path} has no row {unknown[0]}; its rows are {', '.join(comparison.rows)}.")
    rows = list(dict.fromkeys(methods or comparison.rows))
    seeds = range(comparison.first_seed, comparison.first_seed + num_seeds)
    return [_job(path, comparison, row, seed, overrides) for seed in seeds for row in rows]


def _job(path: str, comparison: Comparison, row: str, seed: int, overrides: Sequence[str]) -> Job:
    settings = comparison.set | comparison.rows[row]
    if comparison.budget.samples is not None:
        settings = settings | {"train.max_samples": comparison.budget.samples}
    given = [f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()]
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', row)}-seed{seed}"
    own = [f"run.seed={seed}", f"run.name={name}"]
    try:
        config = load_config(Path(path).parent / comparison.config, [*given, *overrides, *own])
    except ConfigError as error:
        raise ConfigError(f"row {row} of {path}: {error}") from None
    storage = config.storage.model_copy(update={"url": f"{config.storage.url}/compare-{comparison.name}"})
    return Job(row, config.model_copy(update={"storage": storage}))


def compare(
    path: str,
    methods: Sequence[str] | None,
    num_seeds: int,
    overrides: Sequence[str],
    forecast_cpu_s: Callable[[RunConfig], float],
    say: Callable[[str], None],
    num_at_once: int = 1,
    features: str | None = None,
) -> tuple[list[Result], str, str]:
    """Trains and evaluates all rows, and writes table (Markdown, JSON) and page.

    Args:
        path: of the comparison; `methods`, `num_seeds`, `overrides` as in `make_jobs`.
        forecast_cpu_s: seconds of processor time that a run will take, for a budget of such.
        say: shows a line.
        num_at_once: runs that are trained at the same time.
        features: of the Frechet distance, in the place of the file's.

    Returns:
        The results, the table as Markdown, and the page's address.

    Raises:
        EbmscaleError: in a configuration; a run that fails is a row of the table that says why.
    """
    comparison = with_features(load_comparison(path), features)
    jobs = make_jobs(path, methods, num_seeds, overrides)
    evaluation = comparison.evaluation
    check_metrics(evaluation.metrics, evaluation.features)
    network = open_features(evaluation.features) if evaluation.features is not None else None
    storage = open_storage(jobs[0].config.storage)
    storage.probe()
    if comparison.budget.cpu_s is not None:
        jobs = _budgeted(jobs, comparison.budget.cpu_s, storage, forecast_cpu_s, say)
    for job in jobs:
        _check_run(job)
    commands = _Commands()
    with ThreadPoolExecutor(num_at_once) as pool:
        try:
            results = list(pool.map(lambda job: _carry_out(job, evaluation, network, commands, say), jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            commands.stop()
            raise
    table = write_comparison(storage, comparison.name, comparison.about, results)
    return results, table, storage.url_of(PAGE_FILE)


def _budgeted(
    jobs: list[Job],
    cpu_s: float,
    storage: Storage,
    forecast_cpu_s: Callable[[RunConfig], float],
    say: Callable[[str], None],
) -> list[Job]:
    """The jobs with as many samples as the budget pays for, the same for all seeds of a row.

    What a row costs is forecast once, and again only if its settings or the budget have changed.
    """
    known: dict[str, Any] = json.loads(storage.read_text(PILOT_FILE)) if storage.exists(PILOT_FILE) else {}
    budgeted = []
    for job in jobs:
        train = job.config.train
        wanted = {"cpu_s": cpu_s, "config": job.config.model_dump(mode="json", exclude={"run", *CIRCUMSTANCES})}
        if job.row not in known or known[job.row]["wanted"] != wanted:
            needed_s = forecast_cpu_s(job.config)
            num_batches = max(round(train.max_samples / train.batch_size * cpu_s / needed_s), 1)
            known[job.row] = {"samples": num_batches * train.batch_size, "wanted": wanted}
            storage.publish(PILOT_FILE, json.dumps(known, indent=1).encode())
            say(f"{job.row}: {known[job.row]['samples']:,} samples in {cpu_s:g} CPU seconds")
        changed = job.config.model_dump(mode="json")
        changed["train"]["max_samples"] = known[job.row]["samples"]
        try:
            budgeted.append(Job(job.row, RunConfig.model_validate(changed)))
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            samples = known[job.row]["samples"]
            raise ConfigError(f"row {job.row}: {cpu_s:g} CPU seconds pay for {samples:,} samples: {problem}.") from None
    return budgeted


def _check_run(job: Job) -> None:
    """Refuses a run that an earlier comparison of this name made with other settings: it is not this row's."""
    run = run_storage(job.config)
    old = saved_config(run)
    changed = changed_keys(old, job.config, CIRCUMSTANCES) if old is not None else []
    if changed:
        raise ConfigError(
            f"{run.url} was made with other values of {', '.join(changed)}; give the comparison another name, or "
            "delete that folder to train it anew."
        )


def _carry_out(
    job: Job, evaluation: EvaluationBlock, features: Features | None, commands: "_Commands", say: Callable[[str], None]
) -> Result:
    """Trains and evaluates one run, each where it is not done yet; what goes wrong becomes the result."""
    config, url = job.config, run_storage(job.config).url
    result_file = f"results/{config.run.name}.json"
    storage = open_storage(config.storage)
    protocol = features.protocol() if features is not None else {}
    wanted = {"train": config.train.max_samples, "evaluation": evaluation.model_dump(mode="json") | protocol}
    if storage.exists(result_file):
        found = json.loads(storage.read_text(result_file))
        if found["wanted"] == wanted:
            return Result(job.row, config.run.seed, url, found["measured"], None)
    try:
        with tempfile.TemporaryDirectory(prefix="ebmscale-compare-") as folder:
            config_file = Path(folder) / f"{config.run.name}.yaml"
            config_file.write_text(config.dump())
            say(f"{config.run.name}: training")
            commands.run("train", str(config_file))
        say(f"{config.run.name}: evaluating")
        commands.run("evaluate", url, *_options(evaluation), **_environment(config))
    except RunFailed as error:
        say(f"{config.run.name}: {error}")
        return Result(job.row, config.run.seed, url, {}, str(error))
    measured = _measured(run_storage(config), evaluation, features) | _cost(run_storage(config), config)
    storage.publish(result_file, json.dumps({"wanted": wanted, "measured": measured}, indent=1).encode())
    say(f"{config.run.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    return Result(job.row, config.run.seed, url, measured, None)


class RunFailed(Exception):
    """A command ended with an error, whose sentence this is."""


def _options(evaluation: EvaluationBlock) -> list[str]:
    """Of the command `evaluate`."""
    arguments = ["--metrics", ",".join(evaluation.metrics), "--split", evaluation.split]
    if evaluation.features is not None:
        arguments += ["--features", evaluation.features]
    if evaluation.num_samples is not None:
        arguments += ["--num-samples", str(evaluation.num_samples)]
    return arguments


def _environment(config: RunConfig) -> dict[str, str]:
    """What tells `evaluate`, which is given an address alone, of the server that holds the run."""
    return {"AWS_ENDPOINT_URL": config.storage.endpoint_url} if config.storage.endpoint_url else {}


class _Commands:
    """Commands of the program in processes of their own, which end with the comparison."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, *arguments: str, **environment: str) -> None:
        """Runs one to its end, with more environment variables.

        Raises:
            RunFailed: it ended with an error.
            Interrupted: it was stopped.
        """
        if self._stopped:
            raise Interrupted(STOPPED)
        command = [sys.executable, "-m", "ebmscale", *arguments]
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._running.add(process)
        _, errors = process.communicate()
        self._running.discard(process)
        if process.returncode == Interrupted.exit_code or self._stopped:
            raise Interrupted(STOPPED)
        if process.returncode:
            lines = [line for line in errors.strip().splitlines() if line.strip()]
            raise RunFailed(lines[-1] if lines else f"ended with exit code {process.returncode}")

    def stop(self) -> None:
        """Asks those that run to save and end."""
        self._stopped = True
        for process in list(self._running):
            process.terminate()


def _measured(run: Storage, evaluation: EvaluationBlock, features: Features | None) -> dict[str, float]:
    """The values that the evaluation found; a run may hold records of other splits, features and checkpoints too."""
    records = [json.loads(run.read_text(f"{FOLDER}/{name}")) for name in run.list(FOLDER)]
    expected = features.protocol() if features is not None else {}
    values: dict[str, float] = {}
    for metric in evaluation.metrics:
        of_metric = [
            record
            for record in records
            if record["metric"] == metric
            and record["protocol"]["split"] == evaluation.split
            and (metric != "frechet" or expected.items() <= record["protocol"].items())
        ]
        values |= max(of_metric, key=lambda record: (record["samples_seen"], record["protocol"]["num_stages"]))[
            "values"
        ]
    return values


def _cost(run: Storage, config: RunConfig) -> dict[str, float]:
    """What the training took: seconds of processor time, samples, and the stages that it made."""
    lines = read_lines(run, METRICS_FILE)
    cpu_s = sum(line["time"]["cpu_s"] for line in lines)
    return {"stages": lines[-1]["num_frozen"] or config.num_live, "samples": lines[-1]["samples_seen"], "cpu_s": cpu_s}
