"""What ends a run before its time: signals, and losses that are no longer finite."""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ebmscale.density.schedule import Criteria, StageState
from ebmscale.errors import DivergenceError


class StopSignal:
    """Whether this process has been asked to stop; the loop looks between updates."""

    def __init__(self) -> None:
        self.name: str | None = None

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """SIGINT and SIGTERM set the flag; a second SIGINT ends the process at once."""
        previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def check_finite(what: str, value: float, samples_seen: int) -> None:
    """Stops the run if a number that all ranks share is not finite.

    Raises:
        DivergenceError: it is not.
    """
    if not math.isfinite(value):
        raise DivergenceError(
            f"The {what} became {value} after {samples_seen:,} samples, so training stopped before that update; "
            "lower its learning rate or the chain's step_size, then run the same command to go on from the last "
            "checkpoint."
        )


def check_rollbacks(state: StageState, criteria: Criteria) -> None:
    """Stops the run if a stage was rolled back more often than it may be.

    Raises:
        DivergenceError: it was.
    """
    if state.rollbacks > criteria.max_rollbacks:
        raise DivergenceError(
            f"Stage {state.stage} was rolled back {state.rollbacks} times, {criteria.max_rollbacks} are allowed; lower "
            "train.ratio.rate or raise stages.penalty, then run the same command to go on from the last checkpoint."
        )
