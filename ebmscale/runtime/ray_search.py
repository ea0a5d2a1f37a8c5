"""A search on Ray Tune: its trials are placed, watched and started again by Tune; everything else is in the ledger.

Tune keeps no state that matters. It is made anew from the search's records by every start of the command, asks the
ledger for the next trial, and passes on what trials say. It never stops a trial by force: a trial is told to stop and
leaves by itself, so its workers and their resources come back at once.
"""

import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from ebmscale.config import RunConfig
from ebmscale.errors import EbmscaleError, Interrupted, StorageError, WorkersLostError
from ebmscale.runtime.preflight import preflight
from ebmscale.runtime.ray_session import given_address, ray_session
from ebmscale.runtime.ray_train import Signals, here, note_for_jobs, with_addresses, with_devices
from ebmscale.runtime.ray_trial import Desk, Measure, TrialSetup, run_trial
from ebmscale.runtime.search_view import SearchView
from ebmscale.search.check import base_config, check_space
from ebmscale.search.ledger import Judge, Ledger
from ebmscale.search.space import Space
from ebmscale.search.trial import SearchStore
from ebmscale.training.run import run_storage

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
READ_S = 0.5
STALE_ROUNDS = 3  # starts of Tune in which nothing at all got further


def search(
    config: RunConfig,
    space: Space,
    console: Console,
    measure: Measure | None = None,
    evaluated: Callable[[], list[str]] = list,
) -> Ledger:
    """Makes the trials that are missing from a search, or all of them; the same call goes on after any end.

    Args:
        config: that is varied; the search lies at `storage.url`/`run.name`.
        space: what is tried.
        console: where it is shown.
        measure: measures finished runs, for objectives that begin with `evaluate/`.
        evaluated: the names it knows.

    Returns:
        The ledger with the records of all trials.

    Raises:
        ConfigError: the space does not fit the configuration (nothing is started then), or the search found there.
        StorageError: the search's storage refuses.
        WorkersLostError: trials cannot be kept running.
        Interrupted: a signal; the trials have saved.
    """
    config = base_config(config, space)
    check_space(config, space, evaluated)
    note_for_jobs(config, console)
    config = with_addresses(config)
    store = SearchStore(run_storage(config))
    store.storage.probe()
    store.claim(config, space)
    view = SearchView(console)
    ledger = Ledger(store, config, space, tell=view.line)
    view.start(ledger)
    try:
        if ledger.left:
            _search(config, space, ledger, measure, console)
    finally:
        view.close()
    return ledger


def _search(config: RunConfig, space: Space, ledger: Ledger, measure: Measure | None, console: Console) -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with ray_session(config.ray) as ray:
        settled = with_devices(config, ray)
        if given_address(config.ray) is not None:
            preflight(ray, settled, console)
        ledger.consult(_judge(space, config))
        desk = ray.remote(num_cpus=0, max_restarts=0)(Desk).options(**here(ray)).remote()
        with Signals(desk.request.remote) as signals:
            stale = 0
            while ledger.left:
                before = ledger.progress()
                rounds = _Round(ray, settled, space, ledger, desk, measure)
                _follow(ray, rounds, settled, ledger, signals)
                stale = 0 if ledger.progress() != before else stale + 1
                if stale == STALE_ROUNDS:
                    raise WorkersLostError(
                        f"{ledger.left} trial(s) cannot be kept running ({rounds.error or 'nothing gets further'}); "
                        "run the same command to go on."
                    )
                ledger.hand_out_again()


class _Round:
    """One run of Tune, in a thread of its own: it would take SIGINT for itself in the main thread."""

    def __init__(self, ray: Any, config: RunConfig, space: Space, ledger: Ledger, desk: Any, measure: Measure | None):
        self.fatal: EbmscaleError | None = None
        self.error = ""
        self.stopping = False
        self.ray, self._ledger, self._desk = ray, ledger, desk
        self._folder = Path(tempfile.gettempdir()) / "ebmscale-ray-tune" / uuid.uuid4().hex
        setup = TrialSetup(ledger.store, config, space, desk, measure)
        self._tuner = _tuner(self, setup, _most_trials(ray, config, space))
        self._thread = threading.Thread(target=self._go, name="ray-tune", daemon=True)
        self._thread.start()

    def __reduce__(self) -> Any:
        """Tune saves what it is made of, and never reads it again; this stays here."""
        return object, ()

    @property
    def is_over(self) -> bool:
        """Whether Tune has ended."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits until it has ended, at most so long."""
        self._thread.join(seconds)

    def next_trial(self) -> int | None:
        """The number of the trial to begin."""
        record = None if self.stopping else self._carefully(self._ledger.next_trial)
        return None if record is None else record.number

    def said(self, number: int, message: dict[str, Any]) -> None:
        """Takes what a trial says, and puts down what it is asked."""
        self._carefully(lambda: self._take(number, message))

    def died(self, number: int, how: str) -> None:
        """The process of a trial is gone."""
        if not self.stopping:
            self._carefully(lambda: self._ledger.died(number, how))

    def _take(self, number: int, message: dict[str, Any]) -> None:
        if message["kind"] == "begin":
            self._ledger.begun(number, message["place"], message["samples_seen"])
        elif message["kind"] == "end":
            self._ledger.ended(number, message["error"], message["measured"])
        else:
            order = self._ledger.reported(number, message["report"])
            if order is not None:
                self.ray.get(self._desk.give.remote(number, order))

    def _carefully(self, action: Callable[[], Any]) -> Any:
        """What ends the search is kept for the main thread; Tune would take it for a trial's failure."""
        if self.fatal is not None:
            return None
        try:
            return action()
        except EbmscaleError as error:
            self.fatal = error
            return None

    def _go(self) -> None:
        try:
            self._tuner.fit()
        except BaseException as error:
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _follow(ray: Any, rounds: _Round, config: RunConfig, ledger: Ledger, signals: Signals) -> None:
    """Waits until Tune is done, or something ends the search."""
    deadline: float | None = None
    while not rounds.is_over:
        rounds.wait(READ_S)
        if rounds.fatal is not None:
            raise rounds.fatal
        if not ray.is_initialized():
            raise WorkersLostError("The Ray cluster was lost; run the same command to go on.")
        if signals.name is not None:
            rounds.stopping = True
            deadline = deadline or time.monotonic() + config.checkpoint.grace_s
            if signals.twice or time.monotonic() > deadline:
                break
    if rounds.fatal is not None:
        raise rounds.fatal
    if signals.name is not None:
        raise Interrupted(
            f"Stopped by {signals.name}; {ledger.left} of {ledger.wanted} trials are left: run the same command to go "
            "on."
        )


def _tuner(rounds: _Round, setup: TrialSetup, most_trials: int | None) -> Any:
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
        tune.with_resources(tune.with_parameters(trial, setup=setup), _resources(rounds.ray, tune, setup)),
        tune_config=tune.TuneConfig(
            search_alg=Chooser(),
            scheduler=Rules(),
            num_samples=-1,
            max_concurrent_trials=most_trials,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(rounds._folder),
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


def _most_trials(ray: Any, config: RunConfig, space: Space) -> int | None:
    """Trials at a time: as asked, and no more than there is room for where their workers are placed one by one."""
    block, most = config.ray, space.resources.max_trials
    if not block.num_workers:
        return most
    have = ray.cluster_resources()
    room = have.get("CPU", 0.0) / (block.most_workers * block.cpus_per_worker)
    if block.gpus_per_worker:
        room = min(room, have.get("GPU", 0.0) / (block.most_workers * block.gpus_per_worker))
    return max(1, min(int(room), most or int(room)))


def _judge(space: Space, config: RunConfig) -> Judge:
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
        error = trial.get_error()
    except Exception:  # it is only for the message
        return "unknown"
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, StorageError):
        return str(cause)
    return type(cause).__name__ if cause is not None else "unknown"
