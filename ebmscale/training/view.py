"""The display of a training run: a live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ebmscale.data.stream import Batch
from ebmscale.model.timed_parts import PARTS
from ebmscale.terminal import Terminal, duration
from ebmscale.training.summary import Activity, RunSummary


class View:
    """Shows the progress of a run on rank 0. On other ranks, and with `quiet`, it shows nothing.

    Args:
        console: the output. A terminal gets the live view, any other output plain lines.
        quiet: whether to show nothing.
    """

    def __init__(self, console: Terminal | None = None, quiet: bool = False):
        self._console = console or Terminal()
        self._quiet = quiet
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._task: Any = None
        self._metrics: dict[str, Any] = {}
        self._rate = 0.0
        self._max_samples = 0
        self._mark = (0, time.perf_counter())

    def start(self, run: RunSummary, activity: Callable[[], Activity]) -> None:
        """Prints the name of the run and starts the display.

        Args:
            run: as it is opened.
            activity: what the run is doing now; any thread may call it.
        """
        self._quiet = self._quiet or run.rank > 0
        self._mark, self._max_samples = (run.samples_seen, time.perf_counter()), run.max_samples
        if self._quiet:
            return
        counts = ", ".join(f"{count:,} {part}" for part, count in run.counts.items())
        resumed = f", resumed at {run.samples_seen:,} samples" if run.samples_seen else ""
        self._console.print(
            f"run {run.url}{resumed}: {run.data} ({counts}), engine {run.engine}, {run.precision}, "
            f"{run.num_workers} worker(s) on {run.device}"
        )
        if self._console.is_terminal and self._console.is_interactive:
            columns = TextColumn("samples"), BarColumn(24), MofNCompleteColumn(), TextColumn("ETA {task.fields[eta]}")
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task("", total=run.max_samples, completed=run.samples_seen, eta="...")
            self._live = Live(self._render(), console=self._console, refresh_per_second=4)
            self._live.start()

    def event(self, samples_seen: int, event: dict[str, Any]) -> None:
        """Shows a measurement of evidence, with its decision."""
        line = describe_event(samples_seen, event)
        narrow = self._live is not None and len(line) > self._console.width
        lines = event_lines(samples_seen, event, self._console.width) if narrow else [line]
        self._line(samples_seen, *lines)

    def metrics(self, samples_seen: int, metrics: dict[str, Any]) -> None:
        """Shows the metrics of an interval."""
        now = time.perf_counter()
        if samples_seen > self._mark[0]:  # a resumed run may begin with metrics of the interval before its start
            self._rate = (samples_seen - self._mark[0]) / max(now - self._mark[1], 1e-9)
        self._mark = (samples_seen, now)
        self._metrics = metrics
        if self._quiet:
            return
        left = max(self._max_samples - samples_seen, 0) / max(self._rate, 1e-9)
        if self._live is not None and self._progress is not None:
            self._progress.update(self._task, completed=samples_seen, eta=duration(left))
            self._live.update(self._render())
            return
        times = metrics["time"]
        parts = " ".join(f"{part} {times[f'{part}_s'] / max(times['total_s'], 1e-9):.0%}" for part in PARTS)
        mse = f"mse {metrics['train/mse']:.4f}  " if "train/mse" in metrics else ""
        self._plain(f"{samples_seen:>9,} samples  {self._rate:7.0f}/s  ETA {duration(left):>7}  {mse}{parts}")

    def batch(self, batch: Batch) -> None:
        """Called before a batch is trained."""

    def bad(self, samples_seen: int, bad: dict[str, Any]) -> None:
        """Shows an update that was skipped, with the losses that the guard compared."""
        losses = [
            f"{name.replace('_', ' ')} {bad[name]:.4g} (usually {bad[f'usual_{name}']:.4g})"
            for name in ("squared_error", "ratio_loss")
            if bad[name] is not None
        ]
        self._line(samples_seen, f"{samples_seen:>9,} samples  {bad['action']}: {', '.join(losses)}")

    def close(self) -> None:
        """Ends the display."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, samples_seen: int, *lines: str) -> None:
        """Prints lines above the live part, so that they stay in the terminal's history."""
        if self._quiet:
            return
        if self._progress is not None:
            self._progress.update(self._task, completed=samples_seen)
        self._plain(*lines)

    def _plain(self, *lines: str) -> None:
        self._console.print(*lines, sep="\n")

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        metrics, times = self._metrics, self._metrics.get("time", {})
        if metrics:
            table.add_row("stage", f"{metrics['stage']} ({metrics['num_frozen']} frozen)")
            table.add_row("samples/s", f"{self._rate:.0f}")
            if "train/mse" in metrics:
                table.add_row("train mse", f"{metrics['train/mse']:.4f}")
            if "train/ratio_loss" in metrics:
                table.add_row("ratio loss", f"{metrics['train/ratio_loss']:.4f} (1.3863 at chance)")
            parts = "  ".join(f"{part} {times[f'{part}_s']:.1f}" for part in PARTS)
            table.add_row("seconds in", parts)
        parts_shown: list[Any] = [self._progress] if self._progress is not None else []
        return Group(*parts_shown, table)


def describe_event(samples_seen: int, event: dict[str, Any]) -> str:
    """One line for a measurement of evidence."""
    text = f"{samples_seen:>9,} samples  stage {event['stage']}{_error(event, '  held-out mse ')}"
    if "evidence" in event:
        e = event["evidence"]
        text += (
            f"  loss {e['loss']:.4f}  AUC {e['auc']:.3f}  KL >= {e['kl_bound']:.3f} +- {e['kl_bound_error']:.3f}"
            f"  ESS {e['ess']:.1%}  {event['decision']}: {event['reason']}"
        )
    return text


def _error(event: dict[str, Any], before: str, after: str = "") -> str:
    """The held-out error between two texts; nothing where there is none, as for given latents."""
    return f"{before}{event['held_out_mse']:.4f}{after}" if "held_out_mse" in event else ""


def event_lines(samples_seen: int, event: dict[str, Any], width: int) -> list[str]:
    """The lines for a narrow terminal: first the bound and the decision, then the other numbers, then the reason."""
    head, margin = f"{samples_seen:>9,} samples  stage {event['stage']}", " " * 11
    if "evidence" not in event:
        return [f"{head}{_error(event, '  held-out mse ')}"]
    e = event["evidence"]
    lines = [
        f"{head}  KL >= {e['kl_bound']:.3f} +- {e['kl_bound_error']:.3f}  {event['decision']}",
        f"{margin}{_error(event, 'mse ', '  ')}loss {e['loss']:.4f}  AUC {e['auc']:.3f}  ESS {e['ess']:.1%}",
    ]
    if len(lines[1]) + len(event["reason"]) + 2 > width:
        return [*lines, f"{margin}{event['reason']}"]
    return [lines[0], f"{lines[1]}  {event['reason']}"]
