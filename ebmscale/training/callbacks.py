"""What a program that trains from Python hears of a run: small values, at every measurement."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ebmscale.terminal import Terminal
from ebmscale.training.run import Run
from ebmscale.training.view import View


@dataclass(frozen=True)
class Progress:
    """One step of a run.

    Attributes:
        kind: `start`, `metrics` (a line of metrics.jsonl), `evidence` (a line of events.jsonl, with the scheduler's
            decision) or `skipped` (a line of guard.jsonl).
        run: the run's address.
        samples_seen: images trained on, counted each time.
        max_samples: the run's budget.
        values: what the line holds, by name.
    """

    kind: Literal["start", "metrics", "evidence", "skipped"]
    run: str
    samples_seen: int
    max_samples: int
    values: dict[str, Any] = field(default_factory=dict)


Callback = Callable[[Progress], object]


class CallbackView(View):
    """A view that passes on what it is told to functions. An exception of one of them ends the training.

    Args:
        console: the output.
        callbacks: called on rank 0, in their order.
    """

    def __init__(self, console: Terminal, callbacks: Sequence[Callback] = ()):
        super().__init__(console)
        self._callbacks = tuple(callbacks)

    def start(self, run: Run) -> None:
        """Starts the display."""
        super().start(run)
        try:
            self._tell("start", run, {})
        except BaseException:
            self.close()  # the loop closes the view only if it has begun
            raise

    def event(self, run: Run, event: dict[str, Any]) -> None:
        """Shows a measurement of evidence."""
        super().event(run, event)
        self._tell("evidence", run, event)

    def metrics(self, run: Run, metrics: dict[str, Any]) -> None:
        """Shows the metrics of an interval."""
        super().metrics(run, metrics)
        self._tell("metrics", run, metrics)

    def bad(self, run: Run, bad: dict[str, Any]) -> None:
        """Shows an update that was skipped."""
        super().bad(run, bad)
        self._tell("skipped", run, bad)

    def _tell(self, kind: Literal["start", "metrics", "evidence", "skipped"], run: Run, values: dict[str, Any]) -> None:
        if not run.world.is_first:
            return
        told = Progress(kind, str(run.storage.url), run.samples_seen, run.config.train.max_samples, values)
        for callback in self._callbacks:
            callback(told)
