"""The process of a trial: it trains the trial's run like any run, reports to the driver, and obeys its orders.

It makes no decision and writes no record. Each report waits until the driver's ledger has recorded it. So a report is
recorded before training continues, and before any later checkpoint.
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
from ebmscale.search.ledger import TrialOrder
from ebmscale.search.objectives import EVALUATED
from ebmscale.search.population import take_over
from ebmscale.search.space import EvaluateBlock, Space
from ebmscale.search.trial import SearchStore, TrialRecord, folder_of
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
MESSAGE = "trial_message"  # the key of a result of Tune

Measure = Callable[[Storage, list[str], EvaluateBlock, Storage], dict[str, float]]
"""Measures a finished run: a function of its storage, the wanted names, the images and the data set."""


class Mailbox:
    """Holds messages in a separate process: orders of the driver for trials, and reports of a trial's workers."""

    def __init__(self) -> None:
        self._stop_reason: str | None = None
        self._orders: dict[int, TrialOrder] = {}
        self._reports: dict[int, list[dict[str, float]]] = {}

    def request_stop(self, reason: str) -> None:
        """Asks all trials to save and exit."""
        self._stop_reason = self._stop_reason or reason

    def stop_reason(self) -> str | None:
        """Why all trials have to save and exit; None to continue."""
        return self._stop_reason

    def put_order(self, number: int, order: TrialOrder) -> None:
        """Stores an order for a trial."""
        self._orders[number] = order

    def take_order(self, number: int) -> TrialOrder | None:
        """Returns the order for a trial, and removes it."""
        return self._orders.pop(number, None)

    def put_report(self, number: int, report: dict[str, float]) -> None:
        """Stores a report from rank 0 of a trial's workers."""
        self._reports.setdefault(number, []).append(report)

    def take_reports(self, number: int) -> list[dict[str, float]]:
        """Returns the reports since the last call, and removes them."""
        return self._reports.pop(number, [])


class TrialSetup(NamedTuple):
    """The settings that all trials share.

    Attributes:
        store: the search's files.
        config: of the search, with the overrides and the devices.
        space: of the values.
        mailbox: handle of the mailbox's actor.
        launch: identifies the driver that starts the trials.
        measure: measures finished runs, if an objective needs it.
    """

    store: SearchStore
    config: RunConfig
    space: Space
    mailbox: Any
    launch: str
    measure: Measure | None


def run_trial(setup: TrialSetup, number: int) -> None:
    """Works on a trial until it is done, or has to exit.

    Raises:
        StorageError: the storage fails; another process tries the trial again.
        WorkersLostError: the trial's workers are lost; another process tries the trial again.
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


def _go(setup: TrialSetup, record: TrialRecord, link: "_Link") -> TrialOrder | None:
    """Trains the current generation; returns the order that ended it early, or None."""
    number, generation = record.number, len(record.origins)
    config = trial_config(setup.config, setup.space, number, generation, record.values)
    run = run_storage(config)
    if record.origins and not CheckpointStore(run).finished():
        donor = setup.store.run(record.origins[-1].folder)
        if take_over(record.origins[-1], donor, run) is None:
            take_over(record.origins[-1], setup.store.run(folder_of(number, generation - 1)), run, wait_s=0)
    names = CheckpointStore(run).finished()
    link.begin(position_of(names[0]) if names else 0)
    order = link.report_missed(run, record)
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


def _train_here(config: RunConfig, link: "_Link", launch: Launch) -> TrialOrder | None:
    stop = StopSignal()
    with link.watching(stop.request):
        try:
            train(config, TrialView(link, stop), World(0, 1, device_of(config.device)), stop, launch)
        except Interrupted:
            return link.exit_order()
    return link.order  # an order may arrive with the last batch


def _train_on_workers(config: RunConfig, link: "_Link") -> TrialOrder | None:
    ray = import_ray()
    link.take_reports()  # drops those of an earlier generation

    def stop_reason() -> str | None:
        for report in link.take_reports():
            link.report(report)
        return link.order.reason if link.order is not None else link.stop_reason()

    try:
        train_in_session(ray, config, Terminal(quiet=True), report=link.report_sender(), stop_reason=stop_reason)
    except Interrupted:
        return link.exit_order()
    return link.order


class TrialView(View):
    """Shows nothing, and reports the measurements of the run."""

    def __init__(self, link: "_Link", stop: StopSignal):
        super().__init__(quiet=True)
        self._link, self._stop = link, stop
        self._reporter = Reporter(self._report)

    def start(self, run: Run) -> None:
        """Called when the run is open."""
        super().start(run)
        self._reporter.start(run)

    def event(self, run: Run, event: dict[str, Any]) -> None:
        """Called after a measurement of evidence."""
        self._reporter.event(run, event)

    def metrics(self, run: Run, metrics: dict[str, Any]) -> None:
        """Called after an interval of metrics."""
        self._reporter.metrics(run, metrics)

    def _report(self, report: dict[str, float]) -> None:
        order = self._link.report(report)
        if order is not None:
            self._stop.request(order.reason)


@dataclass(frozen=True)
class _ReportSender:
    """Puts reports into the mailbox; a value that can be sent to another process."""

    mailbox: Any
    number: int

    def __call__(self, report: dict[str, float]) -> None:
        import ray  # noqa: PLC0415

        ray.get(self.mailbox.put_report.remote(self.number, report), timeout=CALL_S)


class _Link:
    """The connection of a trial to the driver."""

    def __init__(self, setup: TrialSetup, number: int):
        self._mailbox, self._number = setup.mailbox, number
        self._intervals = any(objective.metric in AT_INTERVAL for objective in setup.space.objectives)
        self.order: TrialOrder | None = None

    def begin(self, samples_seen: int) -> None:
        self.order = None
        self._send({"kind": "begin", "place": this_place(), "samples_seen": samples_seen})

    def report(self, report: dict[str, float]) -> TrialOrder | None:
        """Sends a report; returns the driver's order, or None to continue."""
        if self.order is None and (self._intervals or report.keys() - set(AT_INTERVAL) - {"samples_seen"}):
            self._send({"kind": "report", "report": report})
            self.order = self._call("take_order", self._number)
        return self.order

    def end(self, error: str | None, measured: dict[str, float] | None = None) -> None:
        self._send({"kind": "end", "error": error, "measured": measured or {}})

    def report_missed(self, run: Storage, record: TrialRecord) -> TrialOrder | None:
        """Reports measurements that an earlier process wrote to the run but did not report."""
        for event in read_lines(run, EVENTS_FILE, EventLine):
            if event["samples_seen"] > record.samples_seen:
                order = self.report(evidence_report(event["samples_seen"], event))
                if order is not None:
                    return order
        return None

    def exit_order(self) -> TrialOrder:
        """The order that ended training early."""
        return self.order or TrialOrder("leave", self.stop_reason() or "its process was asked to stop")

    def stop_reason(self) -> str | None:
        """Why all trials have to save and exit; None to continue."""
        return self._call("stop_reason")

    def take_reports(self) -> list[dict[str, float]]:
        """The reports of this trial's workers since the last call."""
        return self._call("take_reports", self._number)

    def report_sender(self) -> _ReportSender:
        return _ReportSender(self._mailbox, self._number)

    @contextmanager
    def watching(self, request: Callable[[str], object]) -> Iterator[None]:
        """Inside this context, calls `request` when the driver asks all trials to exit."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_S):
                try:
                    reason = self.stop_reason()
                except Exception:  # the driver is gone, and this process will end soon
                    log.debug("no mailbox", exc_info=True)
                    continue
                if reason is not None:
                    request(reason)
                    return

        thread = threading.Thread(target=watch, name="mailbox", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=CALL_S)

    def _send(self, message: dict[str, Any]) -> None:
        from ray import tune  # noqa: PLC0415

        tune.report({MESSAGE: json.dumps(message)})

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray  # noqa: PLC0415

        try:
            return ray.get(getattr(self._mailbox, method).remote(*arguments), timeout=CALL_S)
        except ray.exceptions.RayError as error:  # no fault of the trial
            raise WorkersLostError(f"the search's driver does not answer ({type(error).__name__})") from error
