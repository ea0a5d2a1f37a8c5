"""The child process of `checkpoint.py`: it measures a training run, or the opening of a run.

    python tools/bench/checkpoint_child.py train|restore CONFIG OUT.json [KEY=VALUE]...

A run named `without` does not save. The environment variable CHECKPOINTS limits the number of checkpoints.
"""

import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import s3fs

from ebmscale.config import RunConfig, load_config
from ebmscale.data.stream import Batch
from ebmscale.networks import count_parameters
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training import loop
from ebmscale.training.opening import open_run
from ebmscale.training.run import Run
from ebmscale.training.saver import Saver
from ebmscale.training.view import View
from ebmscale.world import World

BATCH = 4
METRICS_EVERY = 5  # batches
WARM_BATCHES = 10
RESTORES = 2


def main() -> None:
    part, config_file, out, *overrides = sys.argv[1:]
    numbers = {"train": train, "restore": restore}[part](load_config(config_file, overrides))
    Path(out).write_text(json.dumps(numbers))


def train(config: RunConfig) -> dict[str, Any]:
    """Trains; returns the times of updates, of the loop's stalls, and of writing."""
    begin_s: list[float] = []
    begun: list[float] = []
    written: list[float] = []
    only = int(os.environ.get("CHECKPOINTS", "0"))
    begin, advance = Saver.begin, Saver.advance

    def timed_begin(self: Saver, *args: Any) -> None:
        if only and len(begun) >= only:
            return
        started = time.time()
        begin(self, *args)
        begin_s.append(time.time() - started)
        begun.append(started)

    def watched_advance(self: Saver, *args: Any) -> None:
        before = self.phase
        advance(self, *args)
        if before == "manifest" and self.phase == "idle":
            written.append(time.time())

    if config.run.name == "without":
        changed: dict[str, Any] = dict.fromkeys(("prepare", "begin"), lambda self, *args: None)
    else:
        changed = {"begin": timed_begin, "advance": watched_advance}
    for name, method in changed.items():
        setattr(Saver, name, method)
    num_parameters: list[int] = []

    def counted_open(*args: Any) -> Run:
        run = open_run(*args)
        num_parameters.append(sum(count_parameters(engine.module) for engine in (run.generator, run.stages.engine)))
        return run

    loop.open_run = counted_open  # type: ignore[attr-defined,assignment]
    times = BatchTimes(config.train.max_samples // BATCH)
    loop.train(config, times, World.alone(), StopSignal())
    lines = Storage.at(config.storage.url).child(config.run.name).read_text("metrics.jsonl").splitlines()
    parts = [json.loads(line)["time"] for line in lines][WARM_BATCHES // METRICS_EVERY :]
    return {
        "num_parameters": num_parameters[0],
        "batch_s": median(times.between()[WARM_BATCHES:]),
        "wall_s": sum(times.between()[WARM_BATCHES:]),
        "parts_s": sum(part["total_s"] for part in parts),
        "checkpoint_s": sum(part["checkpoint_s"] for part in parts),
        "begun": begun,
        "begin_s": begin_s,
        "write_s": [end - start for start, end in zip(begun, written, strict=False)],
        "trained": [times.starts[0], times.starts[-1]],
    }


class BatchTimes(View):
    """Records when each update begins."""

    def __init__(self, num_batches: int):
        super().__init__(quiet=True)
        self.starts: list[float] = []
        self._num_batches = num_batches

    def batch(self, batch: Batch) -> None:
        """Called before each update."""
        self.starts.append(time.time())

    def between(self) -> list[float]:
        """Seconds from each update to the next."""
        return [after - before for before, after in pairwise(self.starts)]


def restore(config: RunConfig) -> dict[str, Any]:
    """Opens a new run, then the saved one, then downloads the same objects with s3fs alone; keeps the best times."""
    new = config.model_copy(update={"run": config.run.model_copy(update={"name": "new"})})
    seconds(lambda: open_run(new, World.alone(), StopSignal()).close())  # connects, and imports modules
    new_s, open_s, transfer_s, plain_s = [], [], [], defaultdict(list)
    for _ in range(RESTORES):
        new_s.append(seconds(lambda: open_run(new, World.alone(), StopSignal()).close()))
        with noted_reads() as reads:
            open_s.append(seconds(lambda: open_run(config, World.alone(), StopSignal()).close()))
        transfer_s.append(covered([(read.start, read.end) for read in reads]))
        for name, download in plain_downloads([read.url for read in reads]).items():
            plain_s[name].append(seconds(download))
    best = open_s.index(min(open_s))
    return {
        "num_bytes": sum(read.num_bytes for read in reads),
        "num_objects": len(reads),
        "restore_s": open_s[best] - min(new_s),
        "transfer_s": transfer_s[best],
        "plain_s": {name: min(times) for name, times in plain_s.items()},
    }


class Read(NamedTuple):
    """The read of one object."""

    url: str
    start: float
    end: float
    num_bytes: int


@contextmanager
def noted_reads() -> Iterator[list[Read]]:
    """Records the reads of checkpoints and frozen ratios inside this context."""
    reads: list[Read] = []
    read_bytes = Storage.read_bytes

    def noted(self: Storage, path: str) -> bytes:
        start = time.perf_counter()
        data = read_bytes(self, path)
        if path.startswith(("checkpoints/", "ratios/")):
            reads.append(Read(self.url_of(path), start, time.perf_counter(), len(data)))
        return data

    Storage.read_bytes = noted  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        Storage.read_bytes = read_bytes  # type: ignore[method-assign]


def plain_downloads(urls: list[str]) -> dict[str, Callable[[], Any]]:
    """Ways to read these objects with s3fs."""
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def one_by_one() -> None:
        for url in urls:
            fs.cat_file(url)

    return {"one by one": one_by_one, "together": lambda: fs.cat(urls)}


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of time spans."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    main()
