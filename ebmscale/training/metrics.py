"""Metrics: means over an interval that are reduced over ranks once, the time by part, and the log files of a run.

`metrics.jsonl` has one line for every interval, `events.jsonl` one line for every decision of the stage scheduler, and
`guard.jsonl` one line for every skipped update. By default TensorBoard files are written too.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmscale.documents import read_json
from ebmscale.errors import DamagedError, LostRunError, StorageError
from ebmscale.model.run_documents import LogLine
from ebmscale.model.timed_parts import PARTS
from ebmscale.storage import Storage
from ebmscale.stored import as_form
from ebmscale.training.event_file import EventFile
from ebmscale.training.line_files import LineFile
from ebmscale.training.trackers import Tracker
from ebmscale.world import World

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
GUARD_FILE = "guard.jsonl"
FLUSH_EVERY_S = 15.0  # for logs that are not in a local folder


class MeanMeter:
    """Means of named values over an interval. The sums stay on the device until they are reduced."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, count: float = 1.0) -> None:
        """Adds a value with the weight `count`."""
        value = torch.as_tensor(value).detach().double() * count
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0.0) + count

    def reduce(self, world: World) -> dict[str, float]:
        """The mean of every name over all ranks (collective). Empties the meter."""
        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        names = sorted(sums)
        table = torch.tensor([[float(sums[n]), counts[n]] for n in names], dtype=torch.float64, device=world.device)
        total = world.sum(table) if names else table
        return {name: float(s / c) for name, (s, c) in zip(names, total, strict=True)}

    def values(self) -> dict[str, tuple[float, float]]:
        """Sum and total weight by name since the last `reduce` on this rank."""
        return {name: (float(self._sums[name]), self._counts[name]) for name in self._sums}

    def load_values(self, values: dict[str, tuple[float, float]]) -> None:
        """Restores the meter from the result of `values`."""
        self._sums = {name: torch.tensor(total, dtype=torch.float64) for name, (total, _) in values.items()}
        self._counts = {name: count for name, (_, count) in values.items()}


class PartTimer:
    """Seconds spent in each part of an update since the last `take`. Time between two processes does not count.

    Attributes:
        current: the current part and the monotonic time, in seconds, at which it began. Other threads may read it.
        around: returns a context manager that is entered with every part (see `training.profile`).
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.current: tuple[str, float] | None = None
        self.around: Callable[[str], AbstractContextManager[None]] | None = None
        self._restart()

    def _restart(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time inside the context to this part."""
        begin = time.perf_counter()
        self.current = name, time.monotonic()
        try:
            with self.around(name) if self.around is not None else nullcontext():
                yield
        finally:
            self.current = None
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds[name] += time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """Seconds since the last call, and starts a new interval.

        They are wall time by part (`data_s`, ...), wall time in total (`total_s`), and processor time of this process
        on all cores (`cpu_s`).
        """
        seconds = {f"{name}_s": value for name, value in self._seconds.items()}
        total = {"total_s": time.perf_counter() - self._since, "cpu_s": time.process_time() - self._cpu_since}
        self._restart()
        return total | seconds

    def values(self) -> dict[str, Any]:
        """The seconds of the current interval, without starting a new one."""
        now, cpu_now = time.perf_counter(), time.process_time()
        return {"parts": dict(self._seconds), "total": now - self._since, "cpu": cpu_now - self._cpu_since}

    def load_values(self, values: dict[str, Any]) -> None:
        """Continues the interval from the result of `values`."""
        self._seconds = dict(values["parts"])
        self._since, self._cpu_since = time.perf_counter() - values["total"], time.process_time() - values["cpu"]


class RunLog:
    """The metric, event and guard files of a run, and TensorBoard. Only rank 0 writes them.

    Lines are buffered until the storage accepts them. They are written to a local folder at once, and to any other
    storage in the background. If a write fails, it is tried again at the next line and by `flush`. Every checkpoint
    calls `flush` first.

    Args:
        storage: the storage of the run.
        kept: by file, the `samples_seen` of the checkpoint from which the run starts. Later lines are deleted.
        tensorboard: whether to write TensorBoard files (only if the run is in a local folder).
        check: called before anything is written. It raises if this process may not write the run.
        trackers: further destinations of numbers and pictures.
    """

    def __init__(
        self,
        storage: Storage,
        kept: Mapping[str, int],
        tensorboard: bool,
        check: Callable[[], None] = lambda: None,
        trackers: Sequence[Tracker] = (),
    ):
        self._storage, self._check = storage, check
        self._local = storage.local_path() is not None
        self._lock = threading.Lock()
        self._files = threading.Lock()
        self._pending: dict[str, bytes] = {}
        self._line_files: dict[str, LineFile] = {}
        self._background: ThreadPoolExecutor | None = None
        self._flushed = time.monotonic()
        self._uncut = dict(kept)
        self._board = EventFile(max(kept.values())) if tensorboard and self._local else None
        self._trackers = [*trackers, *([self._board] if self._board is not None else [])]
        self.takes_pictures = bool(self._trackers)
        self._try_flush()

    def metrics(self, samples_seen: int, values: dict[str, Any]) -> None:
        """Writes one interval's metrics."""
        self._numbers(samples_seen, dict(flatten(values)))
        self._line(METRICS_FILE, {"samples_seen": samples_seen, **values})

    def event(self, samples_seen: int, values: dict[str, Any]) -> None:
        """Writes one measurement of evidence, with its decision."""
        error = {"held_out_mse": values["held_out_mse"]} if "held_out_mse" in values else {}
        self._numbers(samples_seen, dict(flatten(error | values.get("evidence", {}), "evidence/")))
        self._line(EVENTS_FILE, {"samples_seen": samples_seen, **values})

    def picture(self, samples_seen: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture (H, W, 3) of uint8 where pictures are shown (see `takes_pictures`)."""
        for tracker in self._trackers:
            tracker.picture(samples_seen, name, picture)

    def guard(self, samples_seen: int, values: dict[str, Any]) -> None:
        """Writes the action after a bad update."""
        self._line(GUARD_FILE, {"samples_seen": samples_seen, **values})

    def keep(self, file: str, content: bytes) -> None:
        """Writes a file of the run on which nothing depends, such as a picture. If the storage fails, it warns."""
        try:
            self._check()
            self._storage.publish(file, content)
        except LostRunError:  # the next save raises it
            return
        except StorageError as error:
            log.warning("%s cannot be written: %s", file, error)

    def flush(self) -> None:
        """Writes every buffered line.

        Raises:
            StorageError: the storage fails. The lines stay buffered.
            LostRunError: this process may not write the run.
        """
        with self._files:
            self._check()
            for name in list(self._uncut):
                self._file(name).cut(self._uncut[name])
                del self._uncut[name]
            with self._lock:
                pending, self._pending = self._pending, {}
            self._flushed = time.monotonic()
            try:
                for name in list(pending):
                    self._file(name).append(pending[name])
                    del pending[name]
            finally:
                with self._lock:
                    for name, text in pending.items():
                        self._pending[name] = text + self._pending.get(name, b"")
            if self._board is not None:
                self._board.flush(self._storage)

    def close(self) -> None:
        """Writes the buffered lines. If the storage fails, it warns."""
        if self._background is not None:
            self._background.shutdown(wait=True, cancel_futures=True)
        self._try_flush()
        for tracker in self._trackers:
            tracker.close()

    def _numbers(self, samples_seen: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.numbers(samples_seen, values)

    def _line(self, name: str, values: dict[str, Any]) -> None:
        with self._lock:
            self._pending[name] = self._pending.get(name, b"") + json.dumps(_plain(values)).encode() + b"\n"
        if self._local:
            self._try_flush()
        elif time.monotonic() - self._flushed > FLUSH_EVERY_S:
            self._flushed = time.monotonic()
            self._background = self._background or ThreadPoolExecutor(1, thread_name_prefix="log")
            self._background.submit(self._try_flush)

    def _try_flush(self) -> None:
        try:
            self.flush()
        except LostRunError:  # the next save raises it
            return
        except StorageError as error:
            log.warning("metrics cannot be written now and stay in memory: %s", error)

    def _file(self, name: str) -> LineFile:
        return self._line_files.setdefault(name, LineFile(self._storage, name))


def read_lines(storage: Storage, name: str, form: type[LogLine] = LogLine) -> list[dict[str, Any]]:
    """The valid lines of a metric, event or guard file.

    An incomplete last line, which a crash may leave, is skipped. Other invalid lines are skipped with a warning.

    Args:
        storage: of the run.
        name: of the file. The result is empty if it does not exist.
        form: the model that validates a line.
    """
    where, number = storage.url_of(name), 0
    lines, problems, text = [], [], b""
    for text in LineFile(storage, name).texts():
        for line in text.decode(errors="replace").splitlines():
            number += 1
            try:
                values = read_json(line, f"{where}, line {number},", DamagedError)
                as_form(values, form, f"{where}, line {number},")
            except DamagedError as error:
                problems.append(str(error))
                continue
            lines.append(values)
    if len(problems) > 1 or (problems and text.endswith(b"\n")):
        log.warning("%d lines are skipped: %s", len(problems), problems[0])
    return lines


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested mapping, with names such as `a/b`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _plain(value: Any) -> Any:
    """The value with NaN and infinity replaced by None, since JSON cannot represent them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
