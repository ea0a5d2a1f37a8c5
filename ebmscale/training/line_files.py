"""Files of JSON lines that only grow, written and cut at their ends.

In a local folder such a file is NAME. Another storage cannot append to a file. There NAME holds the last lines, at most
`SEGMENT_BYTES` of them, and NAME.000000, NAME.000001 and so on hold the lines before, each written once. So the cost of
a write, and of a cut at a resume, does not grow with the number of lines. The lines are in the order of `samples_seen`.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from ebmscale.documents import read_json
from ebmscale.errors import DamagedError, StorageError
from ebmscale.storage import Storage
from ebmscale.stored import read_file

SEGMENT_BYTES = 256 << 10
BLOCK_BYTES = 1 << 20  # of a local file that is read from its end, at a time
LOG_BYTES = 1 << 30


class LineFile:
    """One such file. It has one writer.

    Args:
        storage: where it is.
        name: its name, of the last lines.
    """

    def __init__(self, storage: Storage, name: str):
        self._storage = storage
        self._name = name
        self._is_local = storage.local_path() is not None
        self._tail: bytes | None = None  # the content of NAME, once it is known
        self._num_segments: int | None = None

    def append(self, text: bytes) -> None:
        """Adds complete lines. If the storage fails, the call can be repeated."""
        if self._is_local:
            self._storage.append(self._name, text)
            return
        if self._tail is None:
            self._tail = self._read_tail()
        tail = self._tail + text
        if len(tail) > SEGMENT_BYTES:
            number = self._count_segments()
            self._storage.publish(self._segment(number), tail)
            self._num_segments, self._tail = number + 1, b""
            with suppress(StorageError):  # see `_read_tail`
                self._storage.publish(self._name, b"")
            return
        self._storage.publish(self._name, tail)
        self._tail = tail

    def texts(self) -> Iterator[bytes]:
        """The content, oldest first, in parts that end with a line."""
        for number in range(self._count_segments()):
            yield read_file(self._storage, self._segment(number), LOG_BYTES)
        yield self._read_tail()

    def cut(self, position: int) -> None:
        """Deletes the lines after a position, and what is not a complete line at the end."""
        if self._is_local and not self._count_segments():
            self._cut_local(position)
            return
        tail, number = self._read_tail(), self._count_segments()
        kept = tail[: _end_of(tail, position)]
        while not kept and number:
            number -= 1
            text = read_file(self._storage, self._segment(number), LOG_BYTES)
            kept = text[: _end_of(text, position)]
        if kept != tail or number < self._count_segments():
            for later in range(self._count_segments() - 1, number, -1):
                self._storage.delete(self._segment(later))
            self._storage.publish(self._name, kept)  # its segment has it too until it is deleted; see `_read_tail`
            self._storage.delete(self._segment(number))
        self._tail, self._num_segments = kept, number

    def _cut_local(self, position: int) -> None:
        path = self._storage.local_path(self._name)
        if path is None or not self._storage.exists(self._name):
            return
        size = self._storage.size(self._name)
        start, text = size, b""
        while True:
            start = max(start - BLOCK_BYTES, 0)
            text = self._storage.read_range(self._name, start, size - start)
            skipped = text.find(b"\n") + 1 if start else 0  # the end of a line that begins before the block
            end = _end_of(text[skipped:], position)
            if end or not start:
                break
        end += start + skipped
        if end == size:
            return
        try:
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"Cannot write {self._storage.url_of(self._name)}: {error.strerror or error}."
            ) from error

    def _read_tail(self) -> bytes:
        """The content of NAME; none if the last segment has it too, as after a crash between two writes."""
        if not self._storage.exists(self._name):
            return b""
        tail, number = read_file(self._storage, self._name, LOG_BYTES), self._count_segments()
        if number and tail and read_file(self._storage, self._segment(number - 1), LOG_BYTES).startswith(tail):
            return b""
        return tail

    def _count_segments(self) -> int:
        """How many segments there are; they are asked for one by one, since a storage may list new files late."""
        if self._num_segments is None:
            step = next(power for power in count() if not self._has(2**power - 1))
            low, high = (2 ** (step - 1) if step else 0), 2**step - 1  # `low` segments are there, number `high` is not
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if self._has(middle) else (low, middle)
            self._num_segments = low
        return self._num_segments

    def _has(self, number: int) -> bool:
        return self._storage.exists(self._segment(number))

    def _segment(self, number: int) -> str:
        return f"{self._name}.{number:06d}"


def _end_of(text: bytes, position: int) -> int:
    """Where the last complete line that is not after the position ends; 0 if there is none."""
    end = text.rfind(b"\n") + 1
    while end:
        begin = text.rfind(b"\n", 0, end - 1) + 1
        if _is_kept(text[begin:end], position):
            return end
        end = begin
    return 0


def _is_kept(line: bytes, position: int) -> bool:
    try:
        values = read_json(line, "A line", DamagedError)
    except DamagedError:
        return False
    seen = values.get("samples_seen") if isinstance(values, dict) else None
    return type(seen) is int and 0 <= seen <= position
