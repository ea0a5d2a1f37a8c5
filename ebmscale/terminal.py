"""What this program prints. Data are never read as markup, and the work continues when its output is closed.

Names of files, labels, runs and servers come from other people. A `Terminal` never reads markup in them, and shows a
control character, a line break or an override of the direction of text as its escape (`\\x1b`, `\\n`, `\\u202e`).
"""

import contextlib
import errno
import logging
import os
import re
import select
import sys
import traceback
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from ebmscale.address import clean
from ebmscale.stop import was_asked

LEAST_COLUMNS = 40  # of a table: with fewer, such as COLUMNS=1, its cells are empty
WAIT_MS = 200  # between two checks whether a slow reader takes more, or a stop was requested
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def shown(text: str, but: str = "") -> str:
    """The text for a screen or a page: unprintable characters become escapes, except those in `but`.

    It is for whole texts of any length. `documents.excerpt` shortens a foreign value for a message,
    `data.names.printable` is for names that a set stores.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in but else _escape(one) for one in text)


def shown_lines(text: str) -> str:
    """Text of several lines, such as another program's log: its line breaks stay, and its colours go."""
    return shown(_COLOURS.sub("", text.replace("\r\n", "\n")), but="\n")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it, such as `40 s`, `12 min`, `3.5 h` or `9 days`."""
    for unit, length in (("s", 1), ("min", 60)):
        if seconds < 90 * length:
            return f"{seconds / length:.0f} {unit}"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 36 else f"{hours / 24:,.0f} days"


class Terminal(Console):
    """A console of rich on which everything is data: no markup, no emoji codes, no highlighting, no control characters.

    A string that is printed is one line; several lines are several calls, or several arguments with `sep`.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"soft_wrap": True} | options, markup=False, emoji=False, highlight=False)
        self.width = max(self.width, LEAST_COLUMNS)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escapes printed strings, and the cells and titles of tables."""
        return super().render_str(shown(clean(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escapes everything that is drawn, except rich's own control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text, but="\n"), segment.style)


class LineHandler(logging.Handler):
    """Prints each message of a log as one line, and each line of a traceback."""

    def __init__(self, terminal: Console):
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Prints it."""
        try:
            self._terminal.print(record.getMessage())
            if record.exc_info:
                for line in "".join(traceback.format_exception(record.exc_info[1])).splitlines():
                    self._terminal.print(line)
        except Exception:
            self.handleError(record)


class _Description(ProgressColumn):
    """What a task is, in one line."""

    def render(self, task: Task) -> Text:
        """The description as it is shown."""
        return Text(shown(task.description))


def progress_on(console: Console, counted: bool = True, shown: bool = True) -> Progress:
    """One line for each task on a terminal, nothing elsewhere; a description is not markup.

    Args:
        console: the terminal.
        counted: whether the steps of a task are counted, so that a bar shows how far it is.
        shown: whether anything is shown.
    """
    bar = (_Description(), BarColumn(20), TaskProgressColumn(), TimeRemainingColumn())
    columns = bar if counted else (SpinnerColumn("line"), _Description(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal))


class Output:
    """A standard stream whose failures do not end the work: if its reader has gone or its disk is full, text is lost.

    Writing waits for a slow reader until a stop is requested. Nothing is buffered.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._fd = stream.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, text: str) -> int:
        """Writes as much of the text as the reader takes."""
        data = memoryview(text.encode(self._stream.encoding or "utf-8", "backslashreplace"))
        try:
            while data and self._waits_for_reader():
                data = data[
                    os.write(self._fd, data[: select.PIPE_BUF]) :
                ]  # a pipe with space takes this much without blocking
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads any more
                _connect_to_null(self._fd)
        return len(text)

    def flush(self) -> None:
        """Does nothing, as everything is written at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _waits_for_reader(self) -> bool:
        while not self._poll.poll(WAIT_MS):
            if was_asked():
                return False
        return True


def keep_output() -> None:
    """Makes an `Output` of each standard stream of this process, so that their failures do not end the work.

    A stream that was closed before the process began is connected to the null device. Otherwise the next file that is
    opened would get its number, and with it what libraries print.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            _connect_to_null(fd)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the process's life)
            continue
        with contextlib.suppress(OSError, ValueError):  # no file behind it, as where tests capture it
            stream.flush()
            setattr(sys, name, Output(stream))


def _connect_to_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != fd:
        os.dup2(null, fd)
        os.close(null)
