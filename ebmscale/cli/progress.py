"""Progress of a long command: a bar on a terminal, and now and then a plain line elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console

from ebmscale.terminal import progress_on

FIRST_LINE_S, NEXT_LINE_S = 2.0, 30.0


class Steps:
    """The progress of one task; used in a `with` block, and called with what is done and what is to be done in all.

    Args:
        console: on which it is shown.
        name: of the task.
        unit: what is counted, in the plural.
        clock: the time in seconds.
    """

    def __init__(self, console: Console, name: str, unit: str, clock: Callable[[], float] = time.monotonic):
        self._console, self._name, self._unit, self._clock = console, name, unit, clock
        self._bar = progress_on(console)
        self._task = self._bar.add_task(name)
        self._due = clock() + FIRST_LINE_S

    def __enter__(self) -> "Steps":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int | None) -> None:
        """Shows that `done` of `total` units are done; the total may be unknown."""
        self._bar.update(self._task, completed=done, total=total)
        if self._console.is_terminal or self._clock() < self._due:
            return
        self._due = self._clock() + NEXT_LINE_S
        of_all = f" of {total:,}" if total is not None else ""
        self._console.print(f"{self._name}: {done:,}{of_all} {self._unit}")
