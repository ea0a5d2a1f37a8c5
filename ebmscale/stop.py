"""A request to stop: from a signal, from another process, or from a cluster.

One handler serves the whole process. While something listens (`StopSignal.listening`), a signal becomes a request to
it, and the work ends in an orderly way. While nothing listens, the signal raises KeyboardInterrupt, as Ctrl-C does.
Signals that follow the first one are the same request: five quick Ctrl-C cannot break the saving that the first began.
A Ctrl-C that comes `DELIBERATE_S` after the first ends the process at once.
"""

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
DELIBERATE_S = 5.0
EXIT_CODE = 130
ENDING = threading.Event()
"""Set once, when the program is told to end: every thread then stops waiting."""
_SHOW_CURSOR = b"\x1b[?25h\r\n"


class StopSignal:
    """Whether this process has been asked to stop, by what, and since when (monotonic seconds)."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.since: float | None = None
        self.event = threading.Event()  # for what waits for a storage

    def request(self, name: str) -> None:
        """Requests a stop for the reason `name`; any thread may call it."""
        self.since = self.since or time.monotonic()
        self.name = self.name or name
        self.event.set()

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Inside the context `SIGNALS` become requests to this object.

        Only the main thread of a process receives signals; in another thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        with _PROCESS.hearing():
            _PROCESS.listeners.append(self)
            try:
                yield self
            finally:
                _PROCESS.listeners.remove(self)


class _Process:
    """How this process handles signals.

    Attributes:
        listeners: who is asked to stop; the last one counts.
        is_program: whether the process is the `ebmscale` command, and not someone's own program.
        asked: when the first signal came (monotonic seconds), None before.
    """

    def __init__(self) -> None:
        self.listeners: list[StopSignal] = []
        self.is_program = False
        self.asked: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Handles the signals until the outermost `hearing` ends."""
        is_outermost = not self._previous
        self.take()
        try:
            yield
        finally:
            previous: dict[signal.Signals, Any] = {}
            if is_outermost:
                previous, self._previous, self.asked = self._previous, {}, None
            for number, handler in previous.items():
                signal.signal(number, handler)

    def take(self) -> None:
        """Installs the handler. A SIGHUP that the parent ignores stays ignored, as nohup wants it."""
        for number in SIGNALS:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous.setdefault(number, signal.signal(number, self._receive))

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.asked is not None:
            if number == signal.SIGINT and now - self.asked > DELIBERATE_S:
                self._end_at_once()
            return
        self.asked = now
        if not self.listeners:
            if self.is_program:
                ENDING.set()
            raise KeyboardInterrupt(name)
        self.listeners[-1].request(name)

    def _end_at_once(self) -> None:
        if not self.is_program:
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + b"stopped: ended at once, without saving\n")
        os._exit(EXIT_CODE)


_PROCESS = _Process()


def handle_signals() -> None:
    """Handles the process's signals until it ends; for the `ebmscale` command."""
    if not _PROCESS.is_program:
        atexit.register(_ignore_signals)  # the first to register is called last
    _PROCESS.is_program = True
    _PROCESS.take()


def _ignore_signals() -> None:
    """Ignores signals while the interpreter ends: otherwise a signal would replace the exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Restores this process's handlers after a library has started inside the context; Ray replaces SIGTERM's."""
    yield
    if _PROCESS.is_program and threading.current_thread() is threading.main_thread():
        _PROCESS.take()


def was_asked() -> bool:
    """Whether a signal has asked this process to stop."""
    return _PROCESS.asked is not None


def asked_by(error: BaseException) -> str:
    """The name of the signal that raised a KeyboardInterrupt."""
    cause: BaseException | None = error
    while cause is not None:
        name = str(cause.args[0]) if isinstance(cause, KeyboardInterrupt) and cause.args else ""
        if name in signal.Signals.__members__:  # Python wraps an exception, and changes its text, in a decoder
            return name
        cause = cause.__cause__ or cause.__context__
    return "SIGINT"
