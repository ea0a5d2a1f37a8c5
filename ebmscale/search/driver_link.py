"""How a trial's process and the driver of a search talk: a mailbox between them, and a trial's connection to it."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ebmscale.errors import WorkersLostError
from ebmscale.model.run_documents import EventLine
from ebmscale.runtime.ray_session import this_place
from ebmscale.search.ledger import TrialOrder
from ebmscale.search.space import Space
from ebmscale.search.trial import TrialRecord
from ebmscale.storage import Storage
from ebmscale.training.metrics import EVENTS_FILE, read_lines
from ebmscale.training.reports import AT_INTERVAL, evidence_report

log = logging.getLogger(__name__)

POLL_S = 1.0
CALL_S = 60.0
MESSAGE = "trial_message"  # the key of a result of Tune


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


@dataclass(frozen=True)
class ReportSender:
    """Puts reports into the mailbox; a value that can be sent to another process."""

    mailbox: Any
    number: int

    def __call__(self, report: dict[str, float]) -> None:
        """Puts a report into the mailbox."""
        import ray  # noqa: PLC0415

        ray.get(self.mailbox.put_report.remote(self.number, report), timeout=CALL_S)


class DriverLink:
    """The connection of a trial to the driver.

    Args:
        mailbox: handle of the mailbox's actor.
        number: of the trial.
        space: of the search, whose objectives say which reports are wanted.

    Attributes:
        order: of the driver, None to continue.
    """

    def __init__(self, mailbox: Any, number: int, space: Space):
        self._mailbox, self._number = mailbox, number
        self._intervals = any(objective.metric in AT_INTERVAL for objective in space.objectives)
        self.order: TrialOrder | None = None

    def begin(self, samples_seen: int) -> None:
        """Tells the driver that the trial trains here from now on."""
        self.order = None
        self._send({"kind": "begin", "place": this_place(), "samples_seen": samples_seen})

    def report(self, report: dict[str, float]) -> TrialOrder | None:
        """Sends a report; returns the driver's order, or None to continue."""
        if self.order is None and (self._intervals or report.keys() - set(AT_INTERVAL) - {"samples_seen"}):
            self._send({"kind": "report", "report": report})
            self.order = self._call("take_order", self._number)
        return self.order

    def end(self, error: str | None, measured: dict[str, float] | None = None) -> None:
        """Tells the driver that the trial has ended, with what was measured or with an error."""
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

    def report_sender(self) -> ReportSender:
        """Sends reports of this trial from another process."""
        return ReportSender(self._mailbox, self._number)

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
