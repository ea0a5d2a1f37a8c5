"""What the process of a trial does: trains the trial's run as any run, reports, and does what it is asked to.

It decides nothing and writes no record. Each report waits for the ledger beside the driver, so what was reported is
recorded before training goes on, and before any checkpoint that knows of it.
"""

import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from ebmscale.address import clean
from ebmscale.config import RunConfig
from ebmscale.errors import EbmscaleError, Interrupted, StorageError, WorkersLostError
from ebmscale.model.checkpoint import position_of
from ebmscale.model.run_documents import EventLine
from ebmscale.model.run_folder import run_storage
from ebmscale.runtime.ray_session import import_ray, this_place
from ebmscale.runtime.ray_train import train_in_session
from ebmscale.runtime.ray_worker import Reporter
from ebmscale.search.check import trial_config
from ebmscale.search.ledger import Order
from ebmscale.search.objectives import EVALUATED
from ebmscale.search.population import take_over
from ebmscale.search.space import EvaluateBlock, Space
from ebmscale.search.trial import Record, SearchStore, folder_of
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage, open_storage
from ebmscale.terminal import Terminal
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.claim import Launch
from ebmscale.training.loop import train
from ebmscale.training.metrics import EVENTS_FILE, read_lines
from ebmscale.training.reports import AT_INTERVAL, evidence_report
from ebmscale.training.run import Run
from ebmscale.training.view import View
from ebmscale.world import World, device_of

log = logging.getLogger(__name__)

POLL_S = 1.0
CALL_S = 60.0

Measure = Callable[[Storage, list[str], EvaluateBlock, Storage], dict[str, float]]
"""What is measured on a finished run: its storage, the wanted names, on which images, and the set; their values."""


class Desk:
    """Between the driver and the processes of trials, in a process of its own: orders one way, reports the other."""

    def __init__(self) -> None:
        self._wish: str | None = None
        self._orders: dict[int, Order] = {}
        self._posted: dict[int, list[dict[str, float]]] = {}

    def request(self, reason: str) -> None:
        """All trials are to save and leave."""
        self._wish = self._wish or reason

    def wish(self) -> str | None:
        """Why they are."""
        return self._wish

    def give(self, number: int, order: Order) -> None:
        """Puts an order down for a trial."""
        self._orders[number] = order

    def take(self, number: int) -> Order | None:
        """The order for a trial, once."""
        return self._orders.pop(number, None)

    def post(self, number: int, report: dict[str, float]) -> None:
        """Takes a report from the first of a trial's workers."""
        self._posted.setdefault(number, []).append(report)

    def posted(self, number: int) -> list[dict[str, float]]:
        """The reports since the last call."""
        return self._posted.pop(number, [])


class TrialSetup(NamedTuple):
    """What every trial is started with.

    Attributes:
        store: the search's files.
        config: of the search, with the overrides and the devices settled.
        space: what is tried.
        desk: handle of the desk's actor.
        launch: names the driver that starts the trials.
        measure: measures finished runs, where an objective needs it.
    """

    store: SearchStore
    config: RunConfig
    space: Space
    desk: Any
    launch: str
    measure: Measure | None


def run_trial(setup: TrialSetup, number: int) -> None:
    """Works on a trial until it is done, or is asked to leave.

    Raises:
        StorageError: the storage refuses; to be tried again by another process.
        WorkersLostError: the same of its workers.
    """
    link = _Link(setup, number)
    while True:
        record = setup.store.read(number)
        if record.status != "running":
            return
        try:
            order = _go(setup, record, link)
        except (StorageError, WorkersLostError):
            raise
        except EbmscaleError as error:
            link.end(str(error))
            return
        except Exception as error:
            log.error("trial %d\n%s", number, clean(traceback.format_exc()))
            link.end(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return
        if order is None or order.kind != "move":
            return


def _go(setup: TrialSetup, record: Record, link: "_Link") -> Order | None:
    """Trains the present generation; an order where it was broken off."""
    number, generation = record.number, len(record.origins)
    config = trial_config(setup.config, setup.space, number, generation, record.values)
    run = run_storage(config)
    if record.origins and not CheckpointStore(run).finished():
        donor = setup.store.run(record.origins[-1].folder)
        if take_over(record.origins[-1], donor, run) is None:
            take_over(record.origins[-1], setup.store.run(folder_of(number, generation - 1)), run, wait_s=0)
    names = CheckpointStore(run).finished()
    link.begin(position_of(names[0]) if names else 0)
    order = link.catch_up(run, record)
    if order is not None:
        return order
    if config.ray.num_workers:
        order = _train_on_workers(config, link)
    else:
        order = _train_here(config, link, Launch(setup.launch, len(record.attempts)))
    if order is None:
        wanted = [o.metric for o in setup.space.objectives if o.metric.startswith(EVALUATED)]
        measure, data = setup.measure, open_storage(config.data)
        link.end(None, measure(run, wanted, setup.space.evaluate, data) if wanted and measure else {})
    return order


def _train_here(config: RunConfig, link: "_Link", launch: Launch) -> Order | None:
    stop = StopSignal()
    with link.watching(stop.request):
        try:
            train(config, TrialView(link, stop), World(0, 1, device_of(config.device)), stop, launch)
        except Interrupted:
            return link.left()
    return link.order  # one that came with the last batch


def _train_on_workers(config: RunConfig, link: "_Link") -> Order | None:
    ray = import_ray()
    link.posted()  # the workers of an earlier generation may have left some

    def meanwhile() -> str | None:
        for report in link.posted():
            link.report(report)
        return link.order.reason if link.order is not None else link.wish()

    try:
        train_in_session(ray, config, Terminal(quiet=True), report=link.poster(), meanwhile=meanwhile)
    except Interrupted:
        return link.left()
    return link.order


class TrialView(View):
    """Shows nothing, and reports what the run measures."""

    def __init__(self, link: "_Link", stop: StopSignal):
        super().__init__(quiet=True)
        self._link, self._stop = link, stop
        self._reporter = Reporter(self._report)

    def start(self, run: Run) -> None:
        """The run is open."""
        super().start(run)
        self._reporter.start(run)

    def event(self, run: Run, event: dict[str, Any]) -> None:
        """A measurement of evidence."""
        self._reporter.event(run, event)

    def metrics(self, run: Run, metrics: dict[str, Any]) -> None:
        """An interval's metrics."""
        self._reporter.metrics(run, metrics)

    def _report(self, report: dict[str, float]) -> None:
        order = self._link.report(report)
        if order is not None:
            self._stop.request(order.reason)


@dataclass(frozen=True)
class _Post:
    """Puts reports down at the desk; made for another process."""

    desk: Any
    number: int

    def __call__(self, report: dict[str, float]) -> None:
        import ray  # noqa: PLC0415

        ray.get(self.desk.post.remote(self.number, report), timeout=CALL_S)


class _Link:
    """A trial's side of the conversation with the driver."""

    def __init__(self, setup: TrialSetup, number: int):
        self._desk, self._number = setup.desk, number
        self._intervals = any(objective.metric in AT_INTERVAL for objective in setup.space.objectives)
        self.order: Order | None = None

    def begin(self, samples_seen: int) -> None:
        self.order = None
        self._say({"kind": "begin", "place": this_place(), "samples_seen": samples_seen})

    def report(self, report: dict[str, float]) -> Order | None:
        """Hands in a report; what is asked then."""
        if self.order is None and (self._intervals or report.keys() - set(AT_INTERVAL) - {"samples_seen"}):
            self._say({"kind": "report", "report": report})
            self.order = self._call("take", self._number)
        return self.order

    def end(self, error: str | None, measured: dict[str, float] | None = None) -> None:
        self._say({"kind": "end", "error": error, "measured": measured or {}})

    def catch_up(self, run: Storage, record: Record) -> Order | None:
        """Hands in what a process before this one wrote into the run and could not report any more."""
        for event in read_lines(run, EVENTS_FILE, EventLine):
            if event["samples_seen"] > record.samples_seen:
                order = self.report(evidence_report(event["samples_seen"], event))
                if order is not None:
                    return order
        return None

    def left(self) -> Order:
        """Why training was broken off."""
        return self.order or Order("leave", self.wish() or "its process was asked to stop")

    def wish(self) -> str | None:
        return self._call("wish")

    def posted(self) -> list[dict[str, float]]:
        return self._call("posted", self._number)

    def poster(self) -> _Post:
        return _Post(self._desk, self._number)

    @contextmanager
    def watching(self, request: Callable[[str], object]) -> Iterator[None]:
        """While inside, a wish of the driver's becomes a request to stop."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_S):
                try:
                    wish = self.wish()
                except Exception:  # the driver is gone, and so will be this process
                    log.debug("no desk", exc_info=True)
                    continue
                if wish is not None:
                    request(wish)
                    return

        thread = threading.Thread(target=watch, name="desk", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=CALL_S)

    def _say(self, message: dict[str, Any]) -> None:
        from ray import tune  # noqa: PLC0415

        tune.report({"said": json.dumps(message)})

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray  # noqa: PLC0415

        try:
            return ray.get(getattr(self._desk, method).remote(*arguments), timeout=CALL_S)
        except ray.exceptions.RayError as error:  # says nothing about the trial
            raise WorkersLostError(f"the search's driver does not answer ({type(error).__name__})") from error
