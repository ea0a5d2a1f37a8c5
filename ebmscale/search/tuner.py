"""How Ray Tune is put to use: a searcher and a scheduler that pass on, and successive halving as a judge."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from ebmscale.config import RunConfig
from ebmscale.errors import EbmscaleError
from ebmscale.runtime.ray_controller import failure_of
from ebmscale.search.ledger import Judge
from ebmscale.search.space import Space
from ebmscale.search.trial_process import TrialSetup, run_trial

SETTINGS = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a Tune that is left behind shall not start a Ray of its own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # of Tune's own state, which is never read
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # a trial's values are chosen when there is room for it
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",  # the one that can be silent
}


class Listener(Protocol):
    """What a run of Tune is asked and told."""

    def next_trial(self) -> int | None:
        """The number of the trial to begin; None where there is none."""

    def said(self, number: int, message: dict[str, Any]) -> None:
        """A trial says something, and waits until it has been heard."""

    def died(self, number: int, how: str) -> None:
        """The process of a trial is gone."""


def apply_settings() -> None:
    """To be called before Ray is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def make_tuner(ray: Any, rounds: Listener, setup: TrialSetup, folder: Path, most_trials: int | None) -> Any:
    """A run of Tune.

    Args:
        ray: connected.
        rounds: what it asks and tells.
        setup: of every trial.
        folder: for Tune's own files, which are never read.
        most_trials: at a time.
    """
    from ray import tune  # noqa: PLC0415
    from ray.tune.schedulers import FIFOScheduler  # noqa: PLC0415
    from ray.tune.search import Searcher  # noqa: PLC0415

    class Chooser(Searcher):
        """Trials as the ledger hands them out."""

        def suggest(self, trial_id: str) -> Any:
            number = rounds.next_trial()
            return Searcher.FINISHED if number is None else {"number": number}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """The ledger knows."""

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()

        def restore(self, checkpoint_path: str) -> None:
            """There is nothing to restore."""

    class Rules(FIFOScheduler):
        """Passes on what trials say; all go on until they leave."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "said" in result:
                rounds.said(trial.config["number"], json.loads(result["said"]))
            return self.CONTINUE

    class Losses(tune.Callback):
        """Takes note of processes that are gone."""

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            rounds.died(trial.config["number"], _how(trial))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            rounds.died(trial.config["number"], _how(trial))

    def trial(config: dict[str, Any], setup: TrialSetup) -> None:
        run_trial(setup, config["number"])

    most_failures = 10 * (setup.space.max_failures + 1)  # the ledger counts, and forgets where there is progress
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, setup=setup), _resources(ray, tune, setup)),
        tune_config=tune.TuneConfig(
            search_alg=Chooser(),
            scheduler=Rules(),
            num_samples=-1,
            max_concurrent_trials=most_trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=most_failures),
            callbacks=[Losses()],
            verbose=0,
        ),
    )


def _resources(ray: Any, tune: Any, setup: TrialSetup) -> Any:
    """Of a trial; one of several workers needs but a place beside the driver, as Ray Train places the workers."""
    block, asked = setup.config.ray, setup.space.resources
    if block.num_workers:
        return tune.PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.001}])
    gpus = block.gpus_per_worker or 0 if asked.gpus is None else asked.gpus
    bundle = {"CPU": float(asked.cpus or block.cpus_per_worker)} | ({"GPU": float(gpus)} if gpus else {})
    return tune.PlacementGroupFactory([bundle])


def make_judge(space: Space, config: RunConfig) -> Judge:
    """Ray's successive halving, asked for its opinion; trials have the same names after every start."""
    if space.scheduler != "asha":
        return lambda number, samples_seen, value: False
    from ray.tune.schedulers import ASHAScheduler  # noqa: PLC0415

    budget = config.train.max_samples
    asha: Any = ASHAScheduler(
        time_attr="samples_seen",
        metric="score",
        mode="min",
        max_t=2 * budget,  # at this point ASHA would stop a trial that is merely done
        grace_period=space.asha.first_samples or max(budget // 9, 1),
        reduction_factor=space.asha.reduction,
    )
    known: dict[int, Any] = {}

    def judge(number: int, samples_seen: int, value: float) -> bool:
        if number not in known:
            known[number] = SimpleNamespace(trial_id=f"{number:04d}")
            asha.on_trial_add(None, known[number])
        result = {"samples_seen": samples_seen, "score": value}
        return asha.on_trial_result(None, known[number], result) == ASHAScheduler.STOP

    return judge


def _how(trial: Any) -> str:
    """How a trial's process ended."""
    try:
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # which Tune has just written there
    except Exception:  # it is only for the message
        return "unknown"
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, EbmscaleError):
        return str(cause)
    failure = failure_of(cause)
    return failure.text or {"gone": "its machine is gone", "preempted": "its machine is taken away"}.get(
        failure.kind, "it was killed"
    )
