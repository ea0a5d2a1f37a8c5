"""What this program prints: data are shown as they are, and no output that goes away ends the work.

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
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from ebmscale.address import clean
from ebmscale.stop import was_asked

WAIT_MS = 200  # between two questions whether a reader that is slow takes more, or a stop was asked for
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def shown(text: str, but: str = "") -> str:
    """The text with every character that is not printable, or a space, as its escape; those in `but` stay."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in but else _escape(one) for one in text)


def shown_lines(text: str) -> str:
    """Text of several lines, such as another program's log: its line breaks stay, and its colours go."""
    return shown(_COLOURS.sub("", text.replace("\r\n", "\n")), but="\n")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class Terminal(Console):
    """A console of rich on which everything is data: no markup, no emoji codes, no highlighting, no control characters.

    A string that is printed is one line; several lines are several calls, or several arguments with `sep`.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"soft_wrap": True} | options, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Printed strings, cells and titles of tables come through here."""
        return super().render_str(shown(clean(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All that is drawn comes through here; only rich's own control codes pass."""
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


def progress_on(console: Console) -> Progress:
    """A progress bar a task on a terminal, nothing elsewhere; a task's description is data."""
    columns = (_Description(), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


class Output:
    """A standard stream that ends nothing: where its reader has gone or its disk is full, text is lost.

    A reader that is slow is waited for, until the process is asked to stop. Nothing is held back in a buffer.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._fd = stream.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, text: str) -> int:
        """Writes text, as far as it is taken."""
        data = memoryview(text.encode(self._stream.encoding or "utf-8", "backslashreplace"))
        try:
            while data and self._waits_for_reader():
                data = data[os.write(self._fd, data[: select.PIPE_BUF]) :]  # so much never blocks a pipe with room
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads any more
                _send_to_nowhere(self._fd)
        return len(text)

    def flush(self) -> None:
        """Everything is written at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _waits_for_reader(self) -> bool:
        while not self._poll.poll(WAIT_MS):
            if was_asked():
                return False
        return True


def keep_output() -> None:
    """Makes the standard streams of this process such that nothing which happens to them ends the work.

    A stream that was closed before the process began becomes one to nowhere: otherwise the next file that is opened
    would take its number, and get what libraries print.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            _send_to_nowhere(fd)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the process's life)
            continue
        with contextlib.suppress(OSError, ValueError):  # no file behind it, as where tests capture it
            stream.flush()
            setattr(sys, name, Output(stream))


def _send_to_nowhere(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != fd:
        os.dup2(nowhere, fd)
        os.close(nowhere)
