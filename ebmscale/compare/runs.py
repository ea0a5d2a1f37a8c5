"""Carries out a comparison: the program's own commands train and evaluate every run, then the table is written."""

import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from ebmscale.compare.beginnings import Beginning, find_beginnings, has_begun, in_turn
from ebmscale.compare.budget import budgeted
from ebmscale.compare.commands import STOPPED, Commands, RunFailed
from ebmscale.compare.outcome import cost, cpu_seconds_at_stages, measured_values
from ebmscale.compare.rows import Comparison, EvaluationBlock, Job, load_comparison, make_jobs, with_features
from ebmscale.compare.split import common_split
from ebmscale.config import CIRCUMSTANCES, RunConfig, changed_keys
from ebmscale.errors import ConfigError, DamagedError, Interrupted
from ebmscale.evaluate.features import Features, open_features
from ebmscale.evaluate.metrics import check_metrics, check_names, default_metrics
from ebmscale.machine import describe
from ebmscale.model.kinds import refuse_other
from ebmscale.model.run_folder import run_storage, saved_config
from ebmscale.report.comparison import PAGE_FILE, write_comparison
from ebmscale.report.result import Result
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage, open_storage
from ebmscale.storage_probe import probe
from ebmscale.stored import Number, Stored, read_document
from ebmscale.training.owner import Lease
from ebmscale.version import commit

SEEN = (
    "a comparison passes addresses to other commands, and every user of this machine can see a command line; give a "
    "local copy, or put the credentials into the storage's own files and variables"
)
POLL_S = 0.5


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
        features: for the Frechet distance, instead of those in the file.

    Returns:
        The results, the table as Markdown, and the page's address.

    Raises:
        EbmscaleError: in a configuration. A run that fails does not raise: its row of the table says why it failed.
    """
    comparison = with_features(load_comparison(path), features)
    jobs = make_jobs(path, methods, num_seeds, overrides)
    evaluation = comparison.evaluation
    for job in jobs:
        job.config.check_secrets(SEEN)
    for one in evaluation.all_features:
        if one.has_secrets:
            raise ConfigError(f"features {one} holds a password or a token, and {SEEN}.")
    of_latents = all(job.config.model.is_identity for job in jobs)
    if of_latents and not comparison.chooses_metrics:
        evaluation = evaluation.model_copy(update={"metrics": tuple(default_metrics(None, is_given=True))})
        comparison = comparison.model_copy(update={"evaluation": evaluation})
    check_metrics(evaluation.metrics, next(iter(evaluation.all_features), None), of_latents)
    check_names(list(evaluation.counts))
    networks = [open_features(one) for one in evaluation.all_features]
    split = common_split((job.config for job in jobs), evaluation.split)
    if split != evaluation.split:
        say(f"evaluation.split: {split}, because the data have {'a' if split == 'test' else 'no'} test part")
        evaluation = evaluation.model_copy(update={"split": split})
        comparison = comparison.model_copy(update={"evaluation": evaluation})
    storage = open_storage(jobs[0].config.storage)
    probe(storage)
    refuse_other(storage, "comparison", "give the comparison another name")
    with Lease(storage, what="comparison") as lease:
        lease.take()
        results = _results(jobs, comparison, networks, storage, samples_within, num_at_once, say, lease)
        table = write_comparison(storage, comparison.name, comparison.about, results)
    return results, table, storage.url_of(PAGE_FILE)


def _results(
    jobs: list[Job],
    comparison: Comparison,
    networks: Sequence[Features],
    storage: Storage,
    samples_within: Callable[[RunConfig, float], int],
    num_at_once: int,
    say: Callable[[str], None],
    lease: Lease,
) -> list[Result]:
    """Carries out every job; see `compare`."""
    if comparison.budget.cpu_s is not None:
        jobs = budgeted(jobs, comparison.budget.cpu_s, storage, samples_within, say)
    for job in jobs:
        _check_run(job)
    commands, beginnings = Commands(), find_beginnings(jobs)
    with StopSignal().listening() as stop, ThreadPoolExecutor(num_at_once) as pool:
        train = partial(_train, beginnings=beginnings, commands=commands, say=say)
        measure = partial(_measure, beginnings=beginnings, networks=networks, commands=commands, say=say)
        carry_out = partial(
            _carry_out, networks=networks, train=train, measure=measure, commands=commands, lease=lease, say=say
        )
        blocks = {is_first: comparison.evaluation.of_seed(is_first) for is_first in (True, False)}
        first = comparison.first_seed
        runs = dict[int, Future[Result]]()
        for place in in_turn(jobs, beginnings):
            runs[place] = pool.submit(carry_out, jobs[place], blocks[jobs[place].config.run.seed == first])
        try:
            return _gathered([runs[place] for place in range(len(jobs))], stop)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            commands.stop()
            raise


def _gathered(runs: list[Future[Result]], stop: StopSignal) -> list[Result]:
    """The results of all runs, in their order.

    Raises:
        Interrupted: a stop was asked for here, or one of the runs was stopped.
    """
    waiting = set(runs)
    while waiting:
        done, waiting = wait(waiting, timeout=POLL_S, return_when=FIRST_EXCEPTION)
        for run in done:
            run.result()
        if stop.name is not None:
            raise Interrupted(STOPPED)
    return [run.result() for run in runs]


def _check_run(job: Job) -> None:
    """Refuses a run of an earlier comparison of this name that was made with other settings."""
    run = run_storage(job.config)
    old = saved_config(run)
    changed = changed_keys(old, job.config, CIRCUMSTANCES) if old is not None else []
    if changed:
        raise ConfigError(
            f"{run.url} was made with other values of {', '.join(changed)}; give the comparison another name, or "
            "delete that folder to train again."
        )


def _carry_out(
    job: Job,
    evaluation: EvaluationBlock,
    networks: Sequence[Features],
    train: Callable[[RunConfig], None],
    measure: Callable[[RunConfig, EvaluationBlock], dict[str, float]],
    commands: Commands,
    lease: Lease,
    say: Callable[[str], None],
) -> Result:
    """Trains and evaluates one run, if that is not done yet. If it fails, the result says why."""
    config, url = job.config, run_storage(job.config).url
    result_file = f"results/{config.run.name}.json"
    storage = open_storage(config.storage)
    protocol = networks[0].protocol() if networks else {}
    asked = (
        evaluation.model_dump(mode="json", exclude={"first_seed_only", *(() if evaluation.by_stage else ("by_stage",))})
        | protocol
    )
    wanted = {"train": config.train.max_samples, "evaluation": asked}
    if len(networks) > 1:
        wanted["features"] = [network.protocol() for network in networks]
    settings = config.model_dump(mode="json", exclude={"run", *CIRCUMSTANCES})
    if storage.exists(result_file):
        try:
            found = read_document(storage, result_file, ResultRecord, non_finite=True)
        except DamagedError as error:
            raise DamagedError(f"{error} Delete that file, and the run is measured again.") from None
        is_of_these = found.config in (None, settings) or saved_config(run_storage(config)) is not None
        if found.wanted == wanted and is_of_these:
            origin = found.commit, found.machine, tuple(found.by_stage)
            return Result(job.row, config.run.seed, url, found.measured, None, *origin)
    try:
        train(config)
        measured = measure(config, evaluation)
        by_stage = _by_stage(config, evaluation, networks, commands) if evaluation.by_stage else ()
    except RunFailed as error:
        say(f"{config.run.name}: {error}")
        return Result(job.row, config.run.seed, url, {}, str(error))
    measured |= cost(run_storage(config), config)
    lease.check()
    result = Result(job.row, config.run.seed, url, measured, None, commit(), describe(), by_stage)
    record = {"wanted": wanted, "measured": measured, "commit": result.commit, "machine": result.machine}
    record |= {"by_stage": by_stage, "config": settings}
    storage.publish(result_file, json.dumps(record, indent=1).encode())
    say(f"{config.run.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    return result


def _train(config: RunConfig, beginnings: dict[str, Beginning], commands: Commands, say: Callable[[str], None]) -> None:
    """Trains a run to its end; what it has in common with others is trained once.

    Raises:
        RunFailed: the command failed.
    """
    beginning = beginnings.get(config.run.name)
    if beginning is not None and not has_begun(config):
        url = beginning.trained(partial(_train, beginnings={}, commands=commands, say=say))
        config = config.model_copy(update={"run": config.run.model_copy(update={"start_from": url})})
    with tempfile.TemporaryDirectory(prefix="ebmscale-compare-") as folder:
        config_file = Path(folder) / f"{config.run.name}.yaml"
        config_file.write_text(config.dump())
        say(f"{config.run.name}: training")
        commands.run("train", str(config_file))


def _measure(
    config: RunConfig,
    evaluation: EvaluationBlock,
    beginnings: dict[str, Beginning],
    networks: Sequence[Features],
    commands: Commands,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Evaluates a run; what is the same for all runs of its beginning is measured there.

    Raises:
        RunFailed: the command failed.
    """

    def measure(one: RunConfig, block: EvaluationBlock) -> None:
        say(f"{one.run.name}: evaluating")
        commands.run("evaluate", run_storage(one).url, *block.options, **_environment(one))

    beginning = beginnings.get(config.run.name)
    shared = evaluation.of_metrics(() if beginning is None else beginning.measures(config))
    own = evaluation.of_metrics(set(evaluation.metrics) - set(shared.metrics))
    if own.metrics:
        measure(config, own)
    places = dict.fromkeys(own.metrics, run_storage(config))
    if beginning is not None and shared.metrics:
        places |= dict.fromkeys(shared.metrics, beginning.measured(partial(measure, block=shared)))
    found: dict[str, float] = {}
    for metric in evaluation.metrics:
        found |= measured_values(places[metric], evaluation.of_metrics((metric,)), networks)
    return found


def _by_stage(
    config: RunConfig, evaluation: EvaluationBlock, networks: Sequence[Features], commands: Commands
) -> tuple[dict[str, float], ...]:
    """Distance and nats of a run under p_0, p_1, ..., each with the processor seconds until then; not of the last."""
    run, asked, found = run_storage(config), evaluation.of_stages, list[dict[str, float]]()
    for stage, cpu_s in enumerate(cpu_seconds_at_stages(run, config)[:-1]):
        commands.run("evaluate", run.url, *asked.options, "--stage", str(stage), **_environment(config))
        found.append({"stage": stage, "cpu_s": cpu_s} | measured_values(run, asked, networks[:1], stage))
    return tuple(found)


class ResultRecord(Stored):
    """The values of a row of the table, the training and evaluation that gave them, and where they were measured.

    Attributes:
        config: the run's settings, which tell of a run that was deleted; None in records of earlier versions.
    """

    wanted: dict[str, Any]
    measured: dict[str, Number]
    commit: str | None = None
    machine: dict[str, str | int] = Field(default_factory=dict)
    by_stage: list[dict[str, Number]] = Field(default_factory=list)
    config: dict[str, Any] | None = None


def _environment(config: RunConfig) -> dict[str, str]:
    """The server that holds the run, as variables for `evaluate`, which takes only an address."""
    return {"AWS_ENDPOINT_URL": config.storage.endpoint_url.real} if config.storage.endpoint_url else {}
