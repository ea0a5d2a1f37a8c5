"""Metrics: reported anywhere, reduced over ranks once per interval; JSONL always, TensorBoard by default.

`metrics.jsonl` holds one line an interval, `events.jsonl` one line for every decision of the stage scheduler.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ebmscale.storage import Storage
from ebmscale.world import World

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
PARTS = ("data", "posterior", "generator", "prior", "ratio", "evidence", "checkpoint")
"""The parts of an update whose time is told apart."""


class MeanMeter:
    """Means of named values over an interval; the sums stay on the device until they are reduced."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, count: float = 1.0) -> None:
        """Adds a value that stands for `count` equal ones."""
        value = torch.as_tensor(value).detach().double() * count
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0.0) + count

    def reduce(self, world: World) -> dict[str, float]:
        """The mean of every name over all ranks (collective); afterwards the meter is empty."""
        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        names = sorted(sums)
        table = torch.tensor([[float(sums[n]), counts[n]] for n in names], dtype=torch.float64, device=world.device)
        total = world.sum(table) if names else table
        return {name: float(s / c) for name, (s, c) in zip(names, total, strict=True)}

    def state(self) -> dict[str, tuple[float, float]]:
        """What has been added since the last `reduce` on this rank."""
        return {name: (float(self._sums[name]), self._counts[name]) for name in self._sums}

    def load_state(self, state: dict[str, tuple[float, float]]) -> None:
        """Takes what `state` gave."""
        self._sums = {name: torch.tensor(total, dtype=torch.float64) for name, (total, _) in state.items()}
        self._counts = {name: count for name, (_, count) in state.items()}


class PartTimer:
    """Wall-clock seconds spent in each part of an update since the last `take`; the time between runs is not spent."""

    def __init__(self, device: torch.device):
        self._device = device
        self._restart()

    def _restart(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time inside as spent in this part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds[name] += time.perf_counter() - begin

    def take(self) -> tuple[dict[str, float], float]:
        """Seconds by part, and all seconds, since the last call."""
        taken, total = self._seconds, time.perf_counter() - self._since
        self._restart()
        return taken, total

    def state(self) -> dict[str, Any]:
        """What `take` would give, without starting anew."""
        return {"parts": dict(self._seconds), "total": time.perf_counter() - self._since}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._seconds = dict(state["parts"])
        self._since = time.perf_counter() - state["total"]


class RunLog:
    """The metric and event files of a run, and TensorBoard; only rank 0 writes.

    Args:
        storage: the run's storage.
        samples_seen: where the run goes on; lines beyond it (written after the last checkpoint) are taken out.
        tensorboard: whether to write TensorBoard files (into local runs only).
    """

    def __init__(self, storage: Storage, samples_seen: int, tensorboard: bool):
        self._storage = storage
        self._board: Any = None
        for name in (METRICS_FILE, EVENTS_FILE):
            self._cut(name, samples_seen)
        folder = storage.local_path("tensorboard")
        if tensorboard and folder is not None:
            from tensorboardX import SummaryWriter  # noqa: PLC0415 (slow to import, and optional)

            self._board = SummaryWriter(str(folder), purge_step=samples_seen or None)

    def metrics(self, samples_seen: int, values: dict[str, Any]) -> None:
        """Writes one interval's metrics."""
        self._line(METRICS_FILE, {"samples_seen": samples_seen, **values})
        if self._board is not None:
            for name, value in flatten(values):
                self._board.add_scalar(name, value, samples_seen)
            self._board.flush()

    def event(self, samples_seen: int, values: dict[str, Any]) -> None:
        """Writes one event."""
        self._line(EVENTS_FILE, {"samples_seen": samples_seen, **values})
        if self._board is not None:
            for name, value in flatten(values.get("evidence", {})):
                self._board.add_scalar(f"evidence/{name}", value, samples_seen)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _line(self, name: str, values: dict[str, Any]) -> None:
        self._storage.append(name, json.dumps(_plain(values)) + "\n")

    def _cut(self, name: str, samples_seen: int) -> None:
        if self._storage.exists(name):
            lines = read_lines(self._storage, name)
            kept = [line for line in lines if line["samples_seen"] <= samples_seen]
            if len(kept) < len(lines) or not self._storage.read_bytes(name).endswith(b"\n"):
                self._storage.publish(name, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_lines(storage: Storage, name: str) -> list[dict[str, Any]]:
    """The lines of a metric or event file; a torn last line, as a crash leaves it, is passed over."""
    lines = []
    for text in storage.read_text(name).splitlines() if storage.exists(name) else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a nested mapping under `a/b` names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
