"""The process of a trial: it trains the trial's run like any run, reports to the driver, and obeys its orders.

It makes no decision and writes no record. Each report waits until the driver's ledger has recorded it. So a report is
recorded before training continues, and before any later checkpoint.
"""

import logging
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from ebmscale.address import clean
from ebmscale.config import RunConfig
from ebmscale.errors import EbmscaleError, Interrupted, StorageError, WorkersLostError
from ebmscale.model.checkpoint import position_of
from ebmscale.model.run_folder import run_storage
from ebmscale.runtime.ray_session import import_ray
from ebmscale.runtime.ray_train import train_in_session
from ebmscale.runtime.ray_worker import Reporter
from ebmscale.search.check import trial_config
from ebmscale.search.driver_link import DriverLink
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
from ebmscale.training.summary import Activity, RunSummary
from ebmscale.training.view import View
from ebmscale.world import World, device_of

log = logging.getLogger(__name__)

Measure = Callable[[Storage, list[str], EvaluateBlock, Storage], dict[str, float]]
"""Measures a finished run: a function of its storage, the wanted names, the images and the data set."""


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
    link = DriverLink(setup.mailbox, number, setup.space)
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


def _go(setup: TrialSetup, record: TrialRecord, link: DriverLink) -> TrialOrder | None:
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


def _train_here(config: RunConfig, link: DriverLink, launch: Launch) -> TrialOrder | None:
    stop = StopSignal()
    with link.watching(stop.request):
        try:
            train(config, TrialView(link, stop), World(0, 1, device_of(config.device)), stop, launch)
        except Interrupted:
            return link.exit_order()
    return link.order  # an order may arrive with the last batch


def _train_on_workers(config: RunConfig, link: DriverLink) -> TrialOrder | None:
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

    def __init__(self, link: DriverLink, stop: StopSignal):
        super().__init__(quiet=True)
        self._link, self._stop = link, stop
        self._reporter = Reporter(self._report)

    def start(self, run: RunSummary, activity: Callable[[], Activity]) -> None:
        """Called when the run is open."""
        super().start(run, activity)
        self._reporter.start(run.samples_seen)

    def event(self, samples_seen: int, event: dict[str, Any]) -> None:
        """Called after a measurement of evidence."""
        self._reporter.event(samples_seen, event)

    def metrics(self, samples_seen: int, metrics: dict[str, Any]) -> None:
        """Called after an interval of metrics."""
        self._reporter.metrics(samples_seen, metrics)

    def _report(self, report: dict[str, float]) -> None:
        order = self._link.report(report)
        if order is not None:
            self._stop.request(order.reason)
