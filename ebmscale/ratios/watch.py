"""Watches a fit: says what it does, and ends it on request or when its time is over."""

import math
import time
from collections.abc import Callable

from ebmscale.stages.draws import Halted
from ebmscale.stop import StopSignal


class Watch:
    """What a fit does now, and why it is to end.

    A fit that is ended keeps the stages that are done. The first stage of a fit always ends in order, because without
    it there would be no result.

    Args:
        stop: requests the end.
        say: called with what the fit does now, in a few words.
        clock: the time in seconds.

    Attributes:
        side: which samples are fitted now, "p" or "q"; empty where there is one fit.
    """

    def __init__(
        self,
        stop: StopSignal | None = None,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.say, self.clock, self.side = say, clock, ""
        self._stop = stop or StopSignal()
        self._whole_s = self._ends_at = self.ends_at = math.inf
        self._has_result = False

    def begin(self, budget_s: float) -> None:
        """A fit begins, which may take that many seconds."""
        self._whole_s = budget_s
        self._ends_at = self.ends_at = self.clock() + budget_s

    def begin_side(self, side: str = "", share: float = 1.0, has_result: bool = False) -> None:
        """One side of the fit begins.

        Args:
            side: its name.
            share: of the time that is left, which it may take.
            has_result: whether the fit has a result without this side.
        """
        now = self.clock()
        self.side, self._has_result = side, has_result
        self.ends_at = now + share * (self._ends_at - now)
        self.say("stage 1")

    def stage_done(self) -> None:
        """A stage is done: from now on the fit may end at any time."""
        self._has_result = True

    def halted(self) -> str | None:
        """Why the fit is to end; None while it may go on."""
        if self._stop.name is not None:
            return f"interrupted by {self._stop.name}"
        if self.clock() >= self.ends_at:
            return f"the {self._whole_s:g} s that were allowed are over"
        return None

    def check(self) -> None:
        """Ends the fit if that is due and there is a result.

        Raises:
            Halted: it is.
        """
        reason = self.halted() if self._has_result else None
        if reason is not None:
            raise Halted(reason)
