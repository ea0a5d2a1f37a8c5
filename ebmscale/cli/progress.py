"""Progress of a long command: a line on a terminal that changes, and now and then a plain line elsewhere.

Plain lines go to the standard error, so what a command prints can be piped.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console

from ebmscale.cli.group import console
from ebmscale.terminal import Terminal, duration, progress_on

FIRST_LINE_S, NEXT_LINE_S = 2.0, 10.0


def progress_console() -> Terminal:
    """Where progress is shown: on the terminal that has the output, else on the standard error."""
    return console if console.is_terminal else Terminal(stderr=True)


class Steps:
    """The progress of one task; used in a `with` block, and called with what is done and what is to be done in all.

    Elsewhere than on a terminal, a line comes after `FIRST_LINE_S` and then every `NEXT_LINE_S` seconds, also where
    nothing was done in between.

    Args:
        name: of the task.
        unit: what is counted, in the plural; empty where nothing is counted.
        shown: whether it is shown at all.
        on: where it is shown; None takes `progress_console`.
        clock: the time in seconds.
        wait: waits so many seconds, and returns whether the task has ended.
    """

    def __init__(
        self,
        name: str,
        unit: str = "",
        shown: bool = True,
        on: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ):
        self._console = on or progress_console()
        self._name, self._unit, self._clock, self._began = name, unit, clock, clock()
        self._done, self._what = 0, ""
        self._total: int | None = None
        self._bar = progress_on(self._console, counted=bool(unit), shown=shown)
        self._has_lines = shown and not self._console.is_terminal
        self._task = self._bar.add_task(name, total=None)
        self._ended = threading.Event()
        self._wait = wait or self._ended.wait
        self._thread = threading.Thread(target=self._lines, name="progress", daemon=True)

    def __enter__(self) -> "Steps":
        self._bar.start()
        if self._has_lines:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._bar.stop()
        if self._has_lines:
            self._thread.join()

    def __call__(self, done: int, total: int | None, unit: str | None = None) -> None:
        """Shows that `done` of `total` units are done; the total may be unknown, and the unit may change."""
        self._done, self._total, self._unit = done, total, unit or self._unit
        self._bar.update(self._task, completed=done, total=total)

    def say(self, what: str) -> None:
        """Shows what is done now."""
        self._what = what
        self._bar.update(self._task, description=self._title)

    @property
    def _title(self) -> str:
        return f"{self._name}: {self._what}" if self._what else self._name

    @property
    def line(self) -> str:
        """How far the task is."""
        of_all = f" of {self._total:,}" if self._total is not None else ""
        counted = f": {self._done:,}{of_all} {self._unit}" if self._unit else ""
        return f"{self._title}{counted} ({duration(self._clock() - self._began)})"

    def _lines(self) -> None:
        """Prints a line now and then until the task ends."""
        seconds = FIRST_LINE_S
        while not self._wait(seconds):
            self._console.print(self.line)
            seconds = NEXT_LINE_S
