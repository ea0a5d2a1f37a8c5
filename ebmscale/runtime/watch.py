"""A worker's watch: a thread that tells the board what the worker is at, and ends the process where it hangs."""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from ebmscale.config import LimitsBlock
from ebmscale.runtime.board import SETUP, Beat, Order
from ebmscale.training.run import Run
from ebmscale.training.stop import StopSignal

BEAT_S = 1.0
SOON_S = 0.1  # after a line was said: what is said with it goes along
CAREFUL_S = 30.0  # where workers were lost is known to about a beat
HUNG_EXIT_CODE = 13
_CHAINS = ("posterior", "prior")


class BoardLink(Protocol):
    """How a worker reaches the board; a call that fails raises."""

    def beat(self, beat: Beat) -> Order:
        """See `Board.beat`."""

    def batch(self, attempt: str, rank: int, start: int, keys: tuple[str, ...] | None) -> None:
        """See `Board.batch`."""

    def overdue(self, attempt: str, rank: int, seconds: float, stacks: str) -> bool:
        """See `Board.overdue`."""


class Watch:
    """Watches one worker from a thread of its own, from `start` to `close`.

    Args:
        link: to the board.
        attempt: names the group of workers that was started together.
        rank: of this worker.
        size: of its world.
        where: its machine and process.
        limits: seconds that a piece of work may take.
        stop: is asked when the board says so.
        preempted: whether this worker has been told that a machine will be taken away.
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
        self._run: Run | None = None
        self._start: int | None = None
        self._piece = (SETUP, time.monotonic())
        self._seen = -1  # samples_seen at the beat before
        self._careful_until = -1
        self._passed = time.monotonic()  # when the place up to which care was asked for was last seen to be ahead
        self._reporting = False
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._said = threading.Event()
        self._thread = threading.Thread(target=self._go, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def begin(self, run: Run) -> None:
        """Set-up is over: the run is open."""
        self._run, self._start = run, run.samples_seen

    def batch(self, start: int, keys: list[str]) -> None:
        """A batch is about to be trained; where workers were lost before, and for a while after, the board is told."""
        if self._careful_until < 0:
            return
        now = time.monotonic()
        if start <= self._careful_until:
            self._passed = now
        careful = now - self._passed < CAREFUL_S
        if careful or self._reporting:
            self._reporting = careful
            try:
                self._link.batch(self._attempt, self._rank, start, tuple(keys) if careful else None)
            except Exception:  # the board is gone, and this process soon will be
                logging.getLogger(__name__).debug("no board", exc_info=True)

    def say(self, text: str) -> None:
        """Prints lines where the driver is."""
        with self._lock:
            self._lines.extend(text.splitlines())
        self._said.set()

    def close(self) -> None:
        """Ends watching; what was said is delivered."""
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
                if not over:
                    self._check()
            except Exception:
                logging.getLogger(__name__).debug("no board", exc_info=True)

    def _beat(self) -> None:
        run = self._run
        self._piece = self._piece_now()
        with self._lock:
            lines, self._lines = tuple(self._lines), []
        beat = Beat(
            self._attempt, self._rank, self._size, self._where, self._start,
            run.samples_seen if run is not None else 0, self._piece[0], lines, self._preempted(),
        )  # fmt: skip
        order = self._link.beat(beat)
        self._careful_until = order.careful_until
        if order.stop is not None:
            self._stop.request(order.stop)

    def _piece_now(self) -> tuple[str, float]:
        """The piece of work that the worker is in, and since when. Between two, it is still in the one before."""
        if self._run is None:
            return self._piece
        current: tuple[str, float] | None = self._run.timer.current
        moved, self._seen = self._seen != self._run.samples_seen, self._run.samples_seen
        if current is not None:
            return current
        part = "data" if self._piece[0] == SETUP else self._piece[0]
        return (part, time.monotonic()) if moved or self._piece[0] == SETUP else self._piece

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
    """A text file whose lines go to a function, for a console or a logging handler."""

    def __init__(self, say: Callable[[str], None], prefix: str = ""):
        self._say = say
        self._prefix = prefix
        self._rest = ""

    def write(self, text: str) -> int:
        """Takes text; whole lines go on at once."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._say(f"{self._prefix}{line}")
        return len(text)

    def flush(self) -> None:
        """Lines go on when they are whole."""

    def isatty(self) -> bool:
        """It is no terminal."""
        return False
