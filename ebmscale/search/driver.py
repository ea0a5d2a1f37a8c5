"""A search on Ray Tune: its trials are placed, watched and started again by Tune; everything else is in the ledger.

Tune keeps no state that matters. It is made anew from the search's records by every start of the command, asks the
ledger for the next trial, and passes on what trials say. It never stops a trial by force: a trial is told to stop and
leaves by itself, so its workers and their resources come back at once.
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
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import ConfigError, EbmscaleError, Interrupted, WorkersLostError
from ebmscale.model.run_folder import run_storage
from ebmscale.runtime.preflight import preflight
from ebmscale.runtime.ray_driver import here, note_for_jobs, with_devices
from ebmscale.runtime.ray_session import given_address, ray_session
from ebmscale.search.check import base_config, check_space
from ebmscale.search.ledger import Ledger
from ebmscale.search.space import Space
from ebmscale.search.trial import SearchStore
from ebmscale.search.trial_process import CALL_S, Desk, Measure, TrialSetup
from ebmscale.search.tuner import apply_settings, make_judge, make_tuner
from ebmscale.search.view import SearchView
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage, open_storage
from ebmscale.terminal import Terminal
from ebmscale.training.owner import Lease
from ebmscale.training.run_data import DATA_FILE, check_run_data

READ_S = 0.5
STALE_ROUNDS = 3  # starts of Tune in which nothing at all got further


def search(
    config: RunConfig,
    space: Space,
    console: Terminal,
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
    config = config.with_absolute_addresses()
    store = SearchStore(run_storage(config))
    store.storage.probe()
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
    trial_space = with_features(space)
    apply_settings()
    _pack(config, ledger.store)
    with ray_session(config.ray) as ray:
        settled = _settled(config, space, ray)
        if given_address(config.ray) is not None:
            preflight(ray, settled, console)
        ledger.consult(make_judge(space, config))
        desk = ray.remote(num_cpus=0, max_restarts=0)(Desk).options(**here(ray)).remote()
        with StopSignal().listening() as stop:
            stale = 0
            while ledger.left:
                before = ledger.progress()
                rounds = _Round(ray, settled, trial_space, ledger, desk, measure)
                _follow(rounds, settled, ledger, stop)
                stale = 0 if ledger.progress() != before else stale + 1
                if stale == STALE_ROUNDS:
                    raise WorkersLostError(
                        f"{ledger.left} trial(s) cannot be kept running ({rounds.error or 'nothing gets further'}); "
                        "run the same command to go on."
                    )
                ledger.hand_out_again()


def with_features(space: Space) -> Space:
    """The space with the address of its features absolute, as trials may run in other folders.

    Raises:
        ConfigError: nothing is there.
    """
    block = space.evaluate
    if block.features is None:
        return space
    if not Storage.at(block.features).exists():
        raise ConfigError(
            f"evaluate.features is {block.features}, and there is nothing at {block.features.absolute()}; a relative "
            "address counts from the folder where the command runs."
        )
    evaluate = block.model_copy(update={"features": block.features.absolute()})
    return space.model_copy(update={"evaluate": evaluate})


def _pack(config: RunConfig, store: SearchStore) -> None:
    """Packs the data set once, where trials would all begin with it, and refuses another one than the search's.

    Raises:
        DataError: it is another one, or is unusable.
    """
    data = open_storage(config.data)
    if config.data.format is not None and not data.exists("manifest.json"):
        pack(open_source(config.data.format, config.data.source or ""), data)
    noted = check_run_data(store.storage, Manifest.load(data), config, "search")
    store.storage.publish(DATA_FILE, noted.model_dump_json(indent=1).encode())


def _settled(config: RunConfig, space: Space, ray: Any) -> RunConfig:
    """The configuration with the device and the threads of a trial's processes settled."""
    asked = space.resources
    if not config.ray.num_workers and asked.gpus is not None:
        config = config.model_copy(update={"device": "cuda" if asked.gpus else "cpu"})
    threads = config.num_threads or max(1, int(asked.cpus or config.ray.cpus_per_worker))
    return with_devices(config.model_copy(update={"num_threads": threads}), ray)


class _Round:
    """One run of Tune, in a thread of its own: it would take SIGINT for itself in the main thread."""

    def __init__(self, ray: Any, config: RunConfig, space: Space, ledger: Ledger, desk: Any, measure: Measure | None):
        self.fatal: EbmscaleError | None = None
        self.error = ""
        self.stopping = False
        self.ray, self._ledger, self._desk = ray, ledger, desk
        self._folder = Path(tempfile.mkdtemp(prefix="ebmscale-ray-tune-"))  # for this user alone: addresses are in it
        setup = TrialSetup(ledger.store, config, space, desk, uuid.uuid4().hex, measure)
        self._tuner = make_tuner(ray, self, setup, self._folder, _most_trials(ray, config, space))
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

    def check(self) -> None:
        """Raises what ends the search."""
        if self.fatal is not None:
            raise self.fatal
        try:
            self.ray.get(self._desk.wish.remote(), timeout=CALL_S)
        except self.ray.exceptions.RayError as error:
            raise WorkersLostError(
                f"The Ray cluster was lost ({type(error).__name__}); run the same command to go on."
            ) from error

    def ask_to_leave(self, reason: str) -> None:
        """Begins no trial any more, and asks those at work to save and leave."""
        if not self.stopping:
            self.stopping = True
            self._desk.request.remote(reason)

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


def _follow(rounds: _Round, config: RunConfig, ledger: Ledger, stop: StopSignal) -> None:
    """Waits until Tune is done, or something ends the search."""
    deadline: float | None = None
    while not rounds.is_over:
        rounds.wait(READ_S)
        rounds.check()
        if stop.name is not None:
            rounds.ask_to_leave(stop.name)
            deadline = deadline or time.monotonic() + config.checkpoint.grace_s
            if time.monotonic() > deadline:
                break
    rounds.check()
    if stop.name is not None:
        raise Interrupted(
            f"Stopped by {stop.name}; {ledger.left} of {ledger.wanted} trials are left: run the same command to go on."
        )


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
