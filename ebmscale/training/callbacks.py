"""The progress of a run for a program that trains from Python: a small value at every measurement."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ebmscale.terminal import Terminal
from ebmscale.training.summary import Activity, RunSummary
from ebmscale.training.view import View

Kind = Literal["start", "metrics", "evidence", "skipped"]


@dataclass(frozen=True)
class Progress:
    """One step of a run.

    Attributes:
        kind: `start`, `metrics` (a line of metrics.jsonl), `evidence` (a line of events.jsonl, with the scheduler's
            decision) or `skipped` (a line of guard.jsonl).
        run: the run's address.
        samples_seen: number of images that were trained on; an image counts every time that it is used.
        max_samples: the run's budget.
        values: the content of the line, by name.
    """

    kind: Kind
    run: str
    samples_seen: int
    max_samples: int
    values: dict[str, Any] = field(default_factory=dict)


Callback = Callable[[Progress], object]


class CallbackView(View):
    """A view that passes the progress of a run to functions. An exception of a function ends the training.

    Args:
        console: the output.
        callbacks: called on rank 0, in their order.
    """

    def __init__(self, console: Terminal, callbacks: Sequence[Callback] = ()):
        super().__init__(console)
        self._callbacks = tuple(callbacks)
        self._run = ("", 0)

    def start(self, run: RunSummary, activity: Callable[[], Activity]) -> None:
        """Starts the display."""
        super().start(run, activity)
        if run.rank > 0:
            self._callbacks = ()
        self._run = (str(run.url), run.max_samples)
        try:
            self._tell("start", run.samples_seen, {})
        except BaseException:
            self.close()  # the loop closes only a view that it has started
            raise

    def event(self, samples_seen: int, event: dict[str, Any]) -> None:
        """Shows a measurement of evidence."""
        super().event(samples_seen, event)
        self._tell("evidence", samples_seen, event)

    def metrics(self, samples_seen: int, metrics: dict[str, Any]) -> None:
        """Shows the metrics of an interval."""
        super().metrics(samples_seen, metrics)
        self._tell("metrics", samples_seen, metrics)

    def bad(self, samples_seen: int, bad: dict[str, Any]) -> None:
        """Shows an update that was skipped."""
        super().bad(samples_seen, bad)
        self._tell("skipped", samples_seen, bad)

    def _tell(self, kind: Kind, samples_seen: int, values: dict[str, Any]) -> None:
        url, max_samples = self._run
        told = Progress(kind, url, samples_seen, max_samples, values)
        for callback in self._callbacks:
            callback(told)
