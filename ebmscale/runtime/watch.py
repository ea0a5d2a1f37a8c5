"""The watch of a worker: a thread that reports the worker's state to the board, and ends the process if it hangs."""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from ebmscale.config import LimitsBlock
from ebmscale.runtime.board import SETUP, Beat, WorkerOrder
from ebmscale.stop import StopSignal
from ebmscale.training.summary import Activity

BEAT_S = 1.0
SOON_S = 0.1  # after a line: lines that follow at once are sent with it
REPORT_BATCHES_S = 30.0  # the place of an earlier loss is known only to within about one beat
ORPHANED_S = 60.0  # after this time without an answer the driver counts as lost: the worker saves and exits
HUNG_EXIT_CODE = 13
_CHAINS = ("posterior", "prior")


class BoardLink(Protocol):
    """A worker's connection to the board; a call that fails raises."""

    def beat(self, beat: Beat) -> WorkerOrder:
        """See `Board.beat`."""

    def batch(self, attempt: str, rank: int, start: int, keys: tuple[str, ...] | None) -> None:
        """See `Board.batch`."""

    def overdue(self, attempt: str, rank: int, seconds: float, stacks: str) -> bool:
        """See `Board.overdue`."""


class Watch:
    """Watches one worker from its own thread, from `start` to `close`.

    Args:
        link: to the board.
        attempt: name of the group of workers that started together.
        rank: of this worker.
        size: number of workers in its world.
        where: its machine and process.
        limits: of each kind of work, in seconds.
        stop: receives a stop that the board requests.
        preempted: whether the cluster has announced that it will take away a machine.
        end: ends this process at once.
    """

    def __init__(
        self,
        link: BoardLink,
        attempt: str,
        rank: int,
        size: int,
        where: str,
        limits: LimitsBlock,
        stop: StopSignal,
        preempted: Callable[[], bool] = lambda: False,
        end: Callable[[int], Any] = os._exit,
    ):
        self._link = link
        self._attempt, self._rank, self._size, self._where = attempt, rank, size, where
        self._limits = limits
        self._stop = stop
        self._preempted = preempted
        self._end = end
        self._activity: Callable[[], Activity] | None = None
        self._start: int | None = None
        self._piece = (SETUP, time.monotonic())
        self._heard = time.monotonic()  # when the board last answered
        self._seen = -1  # samples_seen at the previous beat
        self._report_batches_until = -1
        self._passed = time.monotonic()  # when `_report_batches_until` was last ahead
        self._reporting = False
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._said = threading.Event()
        self._thread = threading.Thread(target=self._go, name="watch", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def begin(self, activity: Callable[[], Activity]) -> None:
        """Called when the run is open, after the set-up.

        Args:
            activity: what the run is doing now.
        """
        self._activity, self._start = activity, activity().samples_seen

    def batch(self, start: int, keys: list[str]) -> None:
        """Called before each update; reports the batch up to some time after the place where workers were lost."""
        if self._report_batches_until < 0:
            return
        now = time.monotonic()
        if start <= self._report_batches_until:
            self._passed = now
        reports = now - self._passed < REPORT_BATCHES_S
        if reports or self._reporting:
            self._reporting = reports
            try:
                self._link.batch(self._attempt, self._rank, start, tuple(keys) if reports else None)
            except Exception:  # the board is gone, and this process will end soon
                logging.getLogger(__name__).debug("no board", exc_info=True)

    def say(self, text: str) -> None:
        """Has the driver print these lines."""
        with self._lock:
            self._lines.extend(text.splitlines())
        self._said.set()

    def close(self) -> None:
        """Ends the thread after it has sent all lines."""
        self._closed.set()
        self._said.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _go(self) -> None:
        over = False
        while not over:
            if self._said.wait(BEAT_S):
                self._closed.wait(SOON_S)
            self._said.clear()
            over = self._closed.is_set()
            try:
                self._beat()
                self._heard = time.monotonic()
                if not over:
                    self._check()
            except Exception:
                logging.getLogger(__name__).debug("no board", exc_info=True)
                if time.monotonic() - self._heard > ORPHANED_S:
                    self._stop.request("the loss of its driver")

    def _beat(self) -> None:
        samples_seen = self._look()
        with self._lock:
            lines, self._lines = tuple(self._lines), []
        beat = Beat(
            self._attempt, self._rank, self._size, self._where, self._start,
            samples_seen, self._piece[0], lines, self._preempted(),
        )  # fmt: skip
        order = self._link.beat(beat)
        self._report_batches_until = order.report_batches_until
        if order.stop is not None:
            self._stop.request(order.stop)

    def _look(self) -> int:
        """Updates the piece of work that the worker does, and when it began; returns `samples_seen`.

        Between two pieces of work, the previous one counts.
        """
        if self._activity is None:
            return 0
        samples_seen, current = self._activity()
        moved, self._seen = self._seen != samples_seen, samples_seen
        part = self._piece[0]
        if current is not None:
            self._piece = current
        elif moved or part == SETUP:
            self._piece = ("data" if part == SETUP else part, time.monotonic())
        return samples_seen

    def _check(self) -> None:
        part, since = self._piece
        seconds, limit = time.monotonic() - since, self._limit(part)
        if limit and seconds > limit:
            stacks = _stacks(but=threading.get_ident())
            if self._link.overdue(self._attempt, self._rank, seconds, stacks):
                self._end(HUNG_EXIT_CODE)

    def _limit(self, part: str) -> float:
        limits = self._limits
        if part == SETUP:
            return limits.setup_s
        if part in _CHAINS:
            return limits.chain_s
        return limits.checkpoint_s if part == "checkpoint" else limits.update_s


def _stacks(but: int) -> str:
    """The stacks of all threads of this process except one, the main and the training thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
        if number != but
    ]
    return "".join(sorted(parts, key=lambda text: "train" not in text.lower()))


class LineWriter:
    """A text file that passes its lines to a function, for a console or a logging handler."""

    def __init__(self, say: Callable[[str], None], prefix: str = ""):
        self._say = say
        self._prefix = prefix
        self._rest = ""

    def write(self, text: str) -> int:
        """Accepts text, and passes on whole lines at once."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._say(f"{self._prefix}{line}")
        return len(text)

    def flush(self) -> None:
        """Does nothing: a line is passed on when it is whole."""

    def isatty(self) -> bool:
        """This is not a terminal."""
        return False
