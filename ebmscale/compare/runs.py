"""Carrying a comparison out: the program's own commands train and evaluate every run, then comes the table."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ebmscale.compare.rows import EvaluationBlock, Job, load_comparison, make_jobs, with_features
from ebmscale.config import CIRCUMSTANCES, RunConfig, changed_keys
from ebmscale.errors import ConfigError, Interrupted
from ebmscale.evaluate.features import Features, open_features
from ebmscale.evaluate.metrics import FOLDER, check_metrics
from ebmscale.model.run_folder import run_storage, saved_config
from ebmscale.report.comparison import PAGE_FILE, Result, write_comparison
from ebmscale.storage import Storage, open_storage
from ebmscale.training.metrics import METRICS_FILE, read_lines

PILOT_FILE = "budget.json"
STOPPED = "Stopped; what is done is kept: run the same command to go on."


def compare(
    path: str,
    methods: Sequence[str] | None,
    num_seeds: int,
    overrides: Sequence[str],
    samples_within: Callable[[RunConfig, float], int],
    say: Callable[[str], None],
    num_at_once: int = 1,
    features: str | None = None,
) -> tuple[list[Result], str, str]:
    """Trains and evaluates all rows, and writes table (Markdown, JSON) and page.

    Args:
        path: of the comparison; `methods`, `num_seeds`, `overrides` as in `make_jobs`.
        samples_within: how many samples a run may train on within a budget of processor seconds.
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
        jobs = _budgeted(jobs, comparison.budget.cpu_s, storage, samples_within, say)
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
    samples_within: Callable[[RunConfig, float], int],
    say: Callable[[str], None],
) -> list[Job]:
    """The jobs with as many samples as the budget pays for, the same for all seeds of a row.

    What a row costs is forecast once, and again only if its settings or the budget have changed.
    """
    known: dict[str, Any] = json.loads(storage.read_text(PILOT_FILE)) if storage.exists(PILOT_FILE) else {}
    budgeted = []
    for job in jobs:
        wanted = {"cpu_s": cpu_s, "config": job.config.model_dump(mode="json", exclude={"run", *CIRCUMSTANCES})}
        if job.row not in known or known[job.row]["wanted"] != wanted:
            known[job.row] = {"samples": samples_within(job.config, cpu_s), "wanted": wanted}
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
