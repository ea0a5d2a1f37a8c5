"""Iterate in a background thread, a bounded number of items ahead of the consumer."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _End(NamedTuple):
    """Put in the queue when the items have ended, or failed."""

    error: BaseException | None


class ReadAhead(Generic[T]):
    """The same items in the same order; an exception of the source reaches the consumer where it belongs.

    Args:
        items: what to iterate; used by the thread alone from now on.
        depth: items that may wait.
    """

    def __init__(self, items: Iterator[T], depth: int):
        self._queue: queue.Queue[T | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(items,), name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> "ReadAhead[T]":
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if not isinstance(item, _End):
            return item
        self._stop.set()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End the thread; what it read ahead is dropped. May be called again."""
        self._stop.set()
        if threading.current_thread() is self._thread:  # the garbage collector may run anywhere
            return
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)  # makes room for a producer that waits
            except queue.Empty:
                continue

    def _produce(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                self._queue.put(item)
                if self._stop.is_set():
                    return
            self._queue.put(_End(None))
        except BaseException as error:
            self._queue.put(_End(error))
