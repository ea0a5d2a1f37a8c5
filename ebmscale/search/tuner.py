"""The parts of Ray Tune that a search uses: a searcher and a scheduler that ask the driver, and ASHA as a stop rule."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from ebmscale.config import RunConfig
from ebmscale.errors import EbmscaleError
from ebmscale.runtime.ray_controller import failure_of
from ebmscale.search.driver_link import MESSAGE
from ebmscale.search.ledger import StopRule
from ebmscale.search.space import Space
from ebmscale.search.trial_process import TrialSetup, run_trial

SETTINGS = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # an orphaned Tune must not start its own Ray
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # how often Tune saves its own state, which is never read
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # a trial's values are chosen when its resources are free
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output can be turned off
}


class TuneListener(Protocol):
    """What Tune asks the driver, and what it passes on to it."""

    def next_trial(self) -> int | None:
        """The number of the trial to start; None if there is none."""

    def received(self, number: int, message: dict[str, Any]) -> None:
        """Called with each message of a trial, which waits until this returns."""

    def died(self, number: int, how: str) -> None:
        """Called when the process of a trial is gone."""


def apply_settings() -> None:
    """Sets Tune's environment variables; call it before Ray is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def make_tuner(ray: Any, tune_run: TuneListener, setup: TrialSetup, folder: Path, most_trials: int | None) -> Any:
    """Makes a run of Tune.

    Args:
        ray: connected.
        tune_run: answers Tune, and receives its messages.
        setup: of every trial.
        folder: for Tune's own files, which are never read.
        most_trials: the greatest number of trials at a time.
    """
    from ray import tune  # noqa: PLC0415
    from ray.tune.schedulers import FIFOScheduler  # noqa: PLC0415
    from ray.tune.search import Searcher  # noqa: PLC0415

    class LedgerSearcher(Searcher):
        """Suggests the trials that the ledger issues."""

        def suggest(self, trial_id: str) -> Any:
            number = tune_run.next_trial()
            return Searcher.FINISHED if number is None else {"number": number}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """Does nothing: the ledger has the result."""

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()

        def restore(self, checkpoint_path: str) -> None:
            """Does nothing: the ledger keeps the state."""

    class ForwardingScheduler(FIFOScheduler):
        """Passes on the messages of trials; a trial runs until it exits by itself."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if MESSAGE in result:
                tune_run.received(trial.config["number"], json.loads(result[MESSAGE]))
            return self.CONTINUE

    class DeadProcesses(tune.Callback):
        """Reports processes that are gone."""

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            tune_run.died(trial.config["number"], _how(trial))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            tune_run.died(trial.config["number"], _how(trial))

    def trial(config: dict[str, Any], setup: TrialSetup) -> None:
        run_trial(setup, config["number"])

    most_failures = 10 * (setup.space.max_failures + 1)  # the ledger applies max_failures
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, setup=setup), _resources(ray, tune, setup)),
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearcher(),
            scheduler=ForwardingScheduler(),
            num_samples=-1,
            max_concurrent_trials=most_trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=most_failures),
            callbacks=[DeadProcesses()],
            verbose=0,
        ),
    )


def _resources(ray: Any, tune: Any, setup: TrialSetup) -> Any:
    """The resources of a trial; one of several workers needs only the driver's node: Ray Train places the workers."""
    block, asked = setup.config.ray, setup.space.resources
    if block.num_workers:
        return tune.PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.001}])
    gpus = block.gpus_per_worker or 0 if asked.gpus is None else asked.gpus
    bundle = {"CPU": float(asked.cpus or block.cpus_per_worker)} | ({"GPU": float(gpus)} if gpus else {})
    return tune.PlacementGroupFactory([bundle])


def make_stop_rule(space: Space, config: RunConfig) -> StopRule:
    """Uses Ray's ASHA scheduler as a stop rule; trials have the same names after every start."""
    if space.scheduler != "asha":
        return lambda number, samples_seen, value: False
    from ray.tune.schedulers import ASHAScheduler  # noqa: PLC0415

    budget = config.train.max_samples
    asha: Any = ASHAScheduler(
        time_attr="samples_seen",
        metric="score",
        mode="min",
        max_t=2 * budget,  # twice the budget, since ASHA stops every trial that reaches max_t
        grace_period=space.asha.first_samples or max(budget // 9, 1),
        reduction_factor=space.asha.reduction,
    )
    known: dict[int, Any] = {}

    def should_stop(number: int, samples_seen: int, value: float) -> bool:
        if number not in known:
            known[number] = SimpleNamespace(trial_id=f"{number:04d}")
            asha.on_trial_add(None, known[number])
        result = {"samples_seen": samples_seen, "score": value}
        return asha.on_trial_result(None, known[number], result) == ASHAScheduler.STOP

    return should_stop


def _how(trial: Any) -> str:
    """How a trial's process ended, as text."""
    try:
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # Tune wrote this file on this machine
    except Exception:  # the text is only for a message
        return "unknown"
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, EbmscaleError):
        return str(cause)
    failure = failure_of(cause)
    return failure.text or {"gone": "its machine is gone", "preempted": "its machine is taken away"}.get(
        failure.kind, "it was killed"
    )
