"""Waiting for a storage: every wait has a time limit, and a stop ends it within `POLL_S` seconds."""

import asyncio
import concurrent.futures
import inspect
import os
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ebmscale.errors import Interrupted
from ebmscale.stop import ENDING

T = TypeVar("T")

POLL_S = 0.1

_AT_ONCE = 16  # requests of `InterruptibleFilesystem.each` in flight
_local = threading.local()


class TooSlow(TimeoutError):
    """A storage did not answer a request in full within its time."""


@dataclass(frozen=True)
class Wait:
    """How long a request may take, and what ends its wait early.

    Attributes:
        limit_s: seconds until `TooSlow`.
        stop: once it is set the wait ends; `ENDING` ends it too.
    """

    limit_s: float
    stop: threading.Event | None = None

    def check(self) -> None:
        """Raises `Interrupted` after a stop."""
        if ENDING.is_set() or (self.stop is not None and self.stop.is_set()):
            raise Interrupted("Stopped while waiting for a storage: run the same command to continue.")

    def sleep(self, seconds: float) -> None:
        """Sleeps; a stop ends it."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, POLL_S))

    def result(self, future: "concurrent.futures.Future[T]") -> T:
        """The result of a future, which is cancelled if this wait ends first."""
        until = time.monotonic() + self.limit_s
        try:
            while True:
                self.check()
                left = until - time.monotonic()
                if left <= 0:
                    raise TooSlow(f"no complete answer in {self.limit_s:.0f} s")
                if concurrent.futures.wait([future], timeout=min(left, POLL_S)).done:
                    return future.result()
        except BaseException:
            future.cancel()
            raise

    def in_thread(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in another thread; if this wait ends first, it no longer waits for the thread."""
        worker = getattr(_local, "worker", None)
        if worker is None or worker.process != os.getpid():  # a process that was forked has no threads
            worker = _Worker()
        _local.worker = None
        result = self.result(worker.submit(work))
        _local.worker = worker  # free for the next call, with the connections that belong to its thread
        return result


class InterruptibleFilesystem:
    """A filesystem of fsspec whose calls a stop or a time limit interrupts: each call is a `Wait`.

    Args:
        fs: the filesystem; calls of one that is not asynchronous are passed on as they are.
        wait: for each of its requests.
    """

    def __init__(self, fs: Any, wait: Wait):
        self._fs, self._wait = fs, wait

    def __getattr__(self, name: str) -> Any:
        method = self._coroutine(name)
        if method is None:
            return getattr(self._fs, name)
        return lambda *arguments, **options: self._run(method(*arguments, **options))

    def within(self, limit_s: float) -> "InterruptibleFilesystem":
        """The same filesystem with another time for each request."""
        return InterruptibleFilesystem(self._fs, replace(self._wait, limit_s=limit_s))

    def each(self, name: str, places: Iterable[str]) -> None:
        """Calls a method for every place, some at a time; files that are gone already are skipped."""
        method = self._coroutine(name)
        if method is None:
            for place in places:
                try:
                    getattr(self._fs, name)(place)
                except FileNotFoundError:
                    continue
            return
        waiting = list(places)
        for first in range(0, len(waiting), _AT_ONCE):
            self._run(_all_of([method(place) for place in waiting[first : first + _AT_ONCE]]))

    def _coroutine(self, name: str) -> Callable[..., Any] | None:
        method = getattr(self._fs, f"_{name}", None) if self._fs.async_impl else None
        return method if inspect.iscoroutinefunction(method) else None

    def _run(self, coroutine: Any) -> Any:
        return self._wait.result(asyncio.run_coroutine_threadsafe(coroutine, self._fs.loop))


async def _all_of(coroutines: Iterable[Awaitable[Any]]) -> None:
    for answer in await asyncio.gather(*coroutines, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, FileNotFoundError):
            raise answer


class _Worker:
    """A thread that does one piece of work after another; the process may end without waiting for it."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._work: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        threading.Thread(target=_do_all, args=(self._work,), name="storage", daemon=True).start()

    def submit(self, work: Callable[[], T]) -> "concurrent.futures.Future[T]":
        """Does the work after what was submitted before."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._work.put((future, work))
        return future

    def __del__(self) -> None:
        self._work.put(None)


_Piece = tuple["concurrent.futures.Future[Any]", Callable[[], Any]]


def _do_all(pieces: "queue.SimpleQueue[_Piece | None]") -> None:
    while (piece := pieces.get()) is not None:
        future, work = piece
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
