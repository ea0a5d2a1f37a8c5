"""The body of a worker on Ray: the same training as on one machine, with a watch and gauges."""

import contextlib
import logging
import os
import traceback
from collections.abc import Callable
from typing import Any

from ebmscale.address import clean
from ebmscale.config import RunConfig
from ebmscale.data.stream import Batch
from ebmscale.errors import EbmscaleError, Interrupted
from ebmscale.model.timed_parts import PARTS
from ebmscale.runtime.board import RESTART_REASONS, Beat, WorkerOrder
from ebmscale.runtime.gauges import Gauges
from ebmscale.runtime.ray_session import this_place
from ebmscale.runtime.scheduling import use_default_scheduling
from ebmscale.runtime.watch import LineWriter, Watch
from ebmscale.runtime.worker import run_worker
from ebmscale.runtime.worker_settings import FINISHED, Report, WorkerSettings
from ebmscale.stop import StopSignal
from ebmscale.terminal import LineHandler, Terminal
from ebmscale.training.claim import Launch
from ebmscale.training.reports import evidence_report, interval_report
from ebmscale.training.summary import Activity, RunSummary
from ebmscale.training.view import View

CALL_S = 20.0  # limit for the board to answer
LINE_WIDTH = 200


class RemoteBoard:
    """Calls the board in its process; see `watch.BoardLink`."""

    def __init__(self, actor: Any):
        self._actor = actor

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray  # noqa: PLC0415

        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=CALL_S)

    def join(self, attempt: str) -> tuple[str, int]:
        """See `Board.join`."""
        return self._call("join", attempt)

    def beat(self, beat: Beat) -> WorkerOrder:
        """See `Board.beat`."""
        return self._call("beat", beat)

    def batch(self, attempt: str, rank: int, start: int, keys: tuple[str, ...] | None) -> None:
        """See `Board.batch`."""
        self._call("batch", attempt, rank, start, keys)

    def overdue(self, attempt: str, rank: int, seconds: float, stacks: str) -> bool:
        """See `Board.overdue`."""
        return self._call("overdue", attempt, rank, seconds, stacks)

    def leave(self, attempt: str, rank: int) -> None:
        """See `Board.leave`."""
        self._call("leave", attempt, rank)

    def reason(self) -> str | None:
        """See `Board.reason`."""
        return self._call("reason")


class Reporter:
    """Passes the measurements of a run to a search.

    Args:
        report: receives them.
    """

    def __init__(self, report: Report):
        self._report = report
        self._last = 0

    def start(self, samples_seen: int) -> None:
        """Called when the run is open."""
        self._last = samples_seen

    def event(self, samples_seen: int, event: dict[str, Any]) -> None:
        """Called after a measurement of evidence."""
        self._report(evidence_report(samples_seen, event))

    def metrics(self, samples_seen: int, metrics: dict[str, Any]) -> None:
        """Called after an interval of metrics."""
        num, self._last = samples_seen - self._last, samples_seen
        self._report(interval_report(samples_seen, metrics, num))


class WorkerView(View):
    """Shows the run on rank 0 as `View` does, sets the gauges, and informs the watch."""

    def __init__(self, console: Terminal, watch: Watch, all_ranks: bool, run_name: str, report: Report | None = None):
        super().__init__(console)
        self._watch = watch
        self._reporter = Reporter(report) if report is not None else None
        self._all_ranks = all_ranks
        self._run_name = run_name
        self._rank = 0
        self._gauges: Gauges | None = None

    def start(self, run: RunSummary, activity: Callable[[], Activity]) -> None:
        """Called when the run is open."""
        super().start(run, activity)
        self._rank = run.rank
        self._watch.begin(activity)
        if self._reporter is not None:
            self._reporter.start(run.samples_seen)
        if run.rank == 0:
            self._gauges = Gauges(self._run_name)
            self._gauges.begin(run.samples_seen, run.num_workers)
        elif self._all_ranks:
            self._watch.say(f"[rank {run.rank}] joined on {this_place()}, {run.device}")

    def batch(self, batch: Batch) -> None:
        """Called before each update."""
        super().batch(batch)
        self._watch.batch(batch.start, batch.keys)

    def event(self, samples_seen: int, event: dict[str, Any]) -> None:
        """Called after a measurement of evidence."""
        super().event(samples_seen, event)
        if self._gauges is not None:
            self._gauges.event(event)
        if self._reporter is not None and self._rank == 0:
            self._reporter.event(samples_seen, event)

    def metrics(self, samples_seen: int, metrics: dict[str, Any]) -> None:
        """Called after an interval of metrics."""
        super().metrics(samples_seen, metrics)
        if self._gauges is not None:
            self._gauges.metrics(samples_seen, metrics)
        elif self._all_ranks:
            times = metrics["time"]
            total = max(times["total_s"], 1e-9)
            parts = " ".join(f"{part} {times.get(f'{part}_s', 0.0) / total:.0%}" for part in PARTS)
            self._watch.say(f"[rank {self._rank}] {samples_seen:>9,} samples  {parts}")
        if self._reporter is not None and self._rank == 0:
            self._reporter.metrics(samples_seen, metrics)


def ray_worker(settings: WorkerSettings) -> str:
    """Trains in one worker of Ray.

    Returns:
        `finished`, or the reason of the cluster for which it has saved and exited.

    Raises:
        EbmscaleError: as `run_worker`.
    """
    config, board = settings.config, RemoteBoard(settings.board)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    attempt = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    _take_device(config)
    stop = StopSignal()
    watch = Watch(board, attempt, rank, size, this_place(), config.ray.limits, stop, _preempted)
    console = _console(watch, rank, settings.all_ranks)
    watch.start()
    use_default_scheduling()
    try:
        view = WorkerView(console, watch, settings.all_ranks, config.run.name, settings.report)
        run_worker(config, console, view, stop, Launch(*board.join(attempt)))
        return FINISHED
    except Interrupted as error:
        reason = board.reason() or "another worker"
        if reason in RESTART_REASONS:
            return reason
        raise Interrupted(str(error).replace("another worker", reason)) from None
    except EbmscaleError:
        raise
    except Exception as error:
        if not _is_lost_connection(error):
            watch.say(clean(f"rank {rank} failed:\n{traceback.format_exc()}"))
        raise
    finally:
        watch.close()
        with contextlib.suppress(Exception):  # the board may be gone
            board.leave(attempt, rank)


def _is_lost_connection(error: Exception) -> bool:
    """Whether an error only reports that another worker is gone."""
    text = str(error).lower()
    return any(word in text for word in ("gloo", "nccl", "connection closed by peer", "connection reset by peer"))


def _take_device(config: RunConfig) -> None:
    """Sets LOCAL_RANK to the number of the device that Ray gave this worker, and limits threads to its cores."""
    cores = str(max(1, int(config.ray.cpus_per_worker)))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(config.num_threads or cores)
    if config.device == "cuda":
        from ray.train.torch import get_device  # noqa: PLC0415

        os.environ["LOCAL_RANK"] = str(get_device().index or 0)


def _console(watch: Watch, rank: int, all_ranks: bool) -> Terminal:
    """A console that sends this worker's lines and log to the driver; only rank 0 logs unless `all_ranks` is set."""
    writer = LineWriter(watch.say, "" if rank == 0 else f"[rank {rank}] ")
    console = Terminal(file=writer, width=LINE_WIDTH)
    ours = logging.getLogger("ebmscale")
    ours.handlers = [LineHandler(console)]
    ours.setLevel(logging.INFO if rank == 0 or all_ranks else logging.ERROR)
    ours.propagate = False
    return console


def _preempted() -> bool:
    """Whether Ray has announced that it will take away a machine of this group."""
    try:
        from ray.train.v2._internal.execution.context import get_train_context  # noqa: PLC0415

        return get_train_context().preemption_context.preemption_info is not None
    except Exception:  # the public call is collective, so this thread cannot use it
        return False
