"""Iterate in a background thread, ahead of the consumer by a bounded number of items and of bytes."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """The same items in the same order; an exception of the source reaches the consumer where it belongs.

    Args:
        items: what to iterate; used by the thread alone from now on.
        depth: items that may wait, at least 1.
        max_bytes: the thread pauses while the waiting items have this size or more in all.
        num_bytes: size of an item.
    """

    def __init__(self, items: Iterator[T], depth: int, max_bytes: int, num_bytes: Callable[[T], int]):
        self._depth = depth
        self._max_bytes = max_bytes
        self._num_bytes = num_bytes
        self._waiting: deque[T] = deque()
        self._waiting_bytes = 0
        self._ended = False  # by the source, or by its failure
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._produce, args=(items,), name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> "ReadAhead[T]":
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
            if self._waiting and not self._closed:
                item = self._waiting.popleft()
                self._waiting_bytes -= self._num_bytes(item)
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None and not self._closed:
            raise error
        raise StopIteration

    def close(self) -> None:
        """End the thread; what it read ahead is dropped. May be called again."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # the garbage collector may run anywhere
            self._thread.join()

    def _produce(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                with self._changed:
                    self._waiting.append(item)
                    self._waiting_bytes += self._num_bytes(item)
                    self._changed.notify_all()
                    self._changed.wait_for(self._may_continue)
                    if self._closed:
                        return
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _may_continue(self) -> bool:
        room = len(self._waiting) < self._depth and self._waiting_bytes < self._max_bytes
        return self._closed or room
