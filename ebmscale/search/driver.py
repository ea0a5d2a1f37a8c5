"""A search on Ray Tune. Tune places, watches and restarts the trials. The ledger keeps the state and decides.

The state of Tune is never read. Every start of the command makes a new Tune, which asks the ledger for the next trial
and passes on the messages of trials. Tune never kills a trial: a trial that has to stop exits by itself, so its workers
and their resources are free at once.
"""

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError, EbmscaleError, Interrupted, WorkersLostError
from ebmscale.model.kinds import refuse_other
from ebmscale.model.run_folder import run_storage
from ebmscale.runtime.preflight import preflight
from ebmscale.runtime.ray_driver import here, note_for_jobs, with_devices
from ebmscale.runtime.ray_session import given_address, ray_session
from ebmscale.search.check import base_config, check_space
from ebmscale.search.driver_link import CALL_S, Mailbox
from ebmscale.search.ledger import Ledger
from ebmscale.search.space import Space
from ebmscale.search.trial import SearchStore
from ebmscale.search.trial_process import Measure, TrialSetup
from ebmscale.search.tuner import apply_settings, make_stop_rule, make_tuner
from ebmscale.search.view import SearchView
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage, open_storage
from ebmscale.storage_probe import probe
from ebmscale.terminal import Terminal
from ebmscale.training.owner import Lease
from ebmscale.training.run_data import DATA_FILE, check_run_data, load_or_pack

READ_S = 0.5
STALE_STARTS = 3  # starts of Tune in a row without any progress


def search(
    config: RunConfig,
    space: Space,
    console: Terminal,
    measure: Measure | None = None,
    evaluated: Callable[[], list[str]] = list,
) -> Ledger:
    """Runs all trials of a search that are not done; the same call resumes the search after any interruption.

    Args:
        config: that the search varies; the search is stored at `storage.url`/`run.name`.
        space: of the values.
        console: shows the search.
        measure: measures finished runs, for objectives that begin with `evaluate/`.
        evaluated: returns the names of the values that `measure` knows.

    Returns:
        The ledger with the records of all trials.

    Raises:
        ConfigError: the space does not fit the configuration or the stored search; no trial has started.
        StorageError: the search's storage fails.
        WorkersLostError: trials cannot be kept running.
        Interrupted: a signal stopped the search; the trials have saved.
    """
    config = base_config(config, space)
    check_space(config, space, evaluated)
    note_for_jobs(config, console)
    config = config.with_absolute_addresses()
    store = SearchStore(run_storage(config))
    probe(store.storage)
    refuse_other(store.storage, "search", "choose another run.name")
    with Lease(store.storage, what="search") as lease:
        lease.take()
        store.claim(config, space)
        view = SearchView(console)
        ledger = Ledger(store, config, space, tell=view.line, check=lease.check)
        view.start(ledger)
        try:
            if ledger.left:
                _search(config, space, ledger, measure, console)
        finally:
            view.close()
    return ledger


def _search(config: RunConfig, space: Space, ledger: Ledger, measure: Measure | None, console: Terminal) -> None:
    trial_space = with_absolute_features(space)
    apply_settings()
    _pack(config, ledger.store)
    with ray_session(config.ray) as ray:
        settled = _with_resources(config, space, ray)
        if given_address(config.ray) is not None:
            preflight(ray, settled, console)
        ledger.use_stop_rule(make_stop_rule(space, config))
        mailbox = ray.remote(num_cpus=0, max_restarts=0)(Mailbox).options(**here(ray)).remote()
        with StopSignal().listening() as stop:
            stale = 0
            while ledger.left:
                before = ledger.progress()
                tune_run = _TuneRun(ray, settled, trial_space, ledger, mailbox, measure)
                _follow(tune_run, settled, ledger, stop)
                stale = 0 if ledger.progress() != before else stale + 1
                if stale == STALE_STARTS:
                    raise WorkersLostError(
                        f"{ledger.left} trial(s) cannot be kept running ({tune_run.error or 'none makes progress'}); "
                        "run the same command to resume."
                    )
                ledger.reissue_unfinished()


def with_absolute_features(space: Space) -> Space:
    """The space with an absolute address of its features, since trials may run in other folders.

    Raises:
        ConfigError: nothing exists at the address.
    """
    block = space.evaluate
    if block.features is None:
        return space
    if not Storage.at(block.features).exists():
        raise ConfigError(
            f"evaluate.features is {block.features}, but {block.features.absolute()} does not exist; a relative "
            "address starts at the folder where the command runs."
        )
    evaluate = block.model_copy(update={"features": block.features.absolute()})
    return space.model_copy(update={"evaluate": evaluate})


def _pack(config: RunConfig, store: SearchStore) -> None:
    """Packs the data set once for all trials; refuses a data set other than the search's own.

    Raises:
        DataError: it is another data set, or cannot be used.
    """
    data = open_storage(config.data)
    noted = check_run_data(store.storage, load_or_pack(config, data), config, "search")
    store.storage.publish(DATA_FILE, noted.model_dump_json(indent=1).encode())


def _with_resources(config: RunConfig, space: Space, ray: Any) -> RunConfig:
    """Returns the configuration with the device and the number of threads of a trial's processes."""
    asked = space.resources
    if not config.ray.num_workers and asked.gpus is not None:
        config = config.model_copy(update={"device": "cuda" if asked.gpus else "cpu"})
    threads = config.num_threads or max(1, int(asked.cpus or config.ray.cpus_per_worker))
    return with_devices(config.model_copy(update={"num_threads": threads}), ray)


class _TuneRun:
    """One run of Tune, in its own thread, since Tune would handle SIGINT itself in the main thread."""

    def __init__(
        self, ray: Any, config: RunConfig, space: Space, ledger: Ledger, mailbox: Any, measure: Measure | None
    ):
        self.fatal: EbmscaleError | None = None
        self.error = ""
        self.stopping = False
        self.ray, self._ledger, self._mailbox = ray, ledger, mailbox
        self._folder = Path(tempfile.mkdtemp(prefix="ebmscale-ray-tune-"))  # only this user can read it
        setup = TrialSetup(ledger.store, config, space, mailbox, uuid.uuid4().hex, measure)
        self._tuner = make_tuner(ray, self, setup, self._folder, _most_trials(ray, config, space))
        self._thread = threading.Thread(target=self._go, name="ray-tune", daemon=True)
        self._thread.start()

    def __reduce__(self) -> Any:
        """Pickles as a plain object, because Tune saves its parts and never reads them."""
        return object, ()

    @property
    def is_over(self) -> bool:
        """Whether Tune has ended."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits until Tune has ended, or until this number of seconds has passed."""
        self._thread.join(seconds)

    def check(self) -> None:
        """Raises the error that ends the search, if there is one."""
        if self.fatal is not None:
            raise self.fatal
        try:
            self.ray.get(self._mailbox.stop_reason.remote(), timeout=CALL_S)
        except self.ray.exceptions.RayError as error:
            raise WorkersLostError(
                f"The Ray cluster was lost ({type(error).__name__}); run the same command to resume."
            ) from error

    def request_stop(self, reason: str) -> None:
        """Starts no more trials, and asks the running ones to save and exit."""
        if not self.stopping:
            self.stopping = True
            self._mailbox.request_stop.remote(reason)

    def next_trial(self) -> int | None:
        """The number of the trial to start; None if there is none."""
        record = None if self.stopping else self._keep_error(self._ledger.next_trial)
        return None if record is None else record.number

    def received(self, number: int, message: dict[str, Any]) -> None:
        """Records the message of a trial in the ledger, and puts the trial's order into the mailbox."""
        self._keep_error(lambda: self._record(number, message))

    def died(self, number: int, how: str) -> None:
        """Records that the process of a trial is gone."""
        if not self.stopping:
            self._keep_error(lambda: self._ledger.died(number, how))

    def _record(self, number: int, message: dict[str, Any]) -> None:
        if message["kind"] == "begin":
            self._ledger.begun(number, message["place"], message["samples_seen"])
        elif message["kind"] == "end":
            self._ledger.ended(number, message["error"], message["measured"])
        else:
            order = self._ledger.reported(number, message["report"])
            if order is not None:
                self.ray.get(self._mailbox.put_order.remote(number, order))

    def _keep_error(self, action: Callable[[], Any]) -> Any:
        """Keeps an error that ends the search for the main thread; Tune would treat it as a failure of the trial."""
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


def _follow(tune_run: _TuneRun, config: RunConfig, ledger: Ledger, stop: StopSignal) -> None:
    """Waits until Tune has ended, or an error or a signal ends the search."""
    deadline: float | None = None
    while not tune_run.is_over:
        tune_run.wait(READ_S)
        tune_run.check()
        if stop.name is not None:
            tune_run.request_stop(stop.name)
            deadline = deadline or time.monotonic() + config.checkpoint.grace_s
            if time.monotonic() > deadline:
                break
    tune_run.check()
    if stop.name is not None:
        raise Interrupted(
            f"Stopped by {stop.name}; {ledger.left} of {ledger.wanted} trials are left: run the same command to resume."
        )


def _most_trials(ray: Any, config: RunConfig, space: Space) -> int | None:
    """Trials at a time: `max_trials`; for trials of several workers, no more than the cluster has resources for."""
    block, most = config.ray, space.resources.max_trials
    if not block.num_workers:
        return most
    have = ray.cluster_resources()
    room = have.get("CPU", 0.0) / (block.most_workers * block.cpus_per_worker)
    if block.gpus_per_worker:
        room = min(room, have.get("GPU", 0.0) / (block.most_workers * block.gpus_per_worker))
    return max(1, min(int(room), most or int(room)))
