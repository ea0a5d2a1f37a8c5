"""What ends a run before its time, or sets it back: signals, losses that are not finite, spikes, lost chains."""

import math
from dataclasses import asdict, replace
from typing import Any, Literal

from ebmscale.config import GuardBlock
from ebmscale.density.schedule import Criteria, StageState
from ebmscale.errors import DivergenceError
from ebmscale.model.run_documents import GuardState

WARM_UPDATES = 20  # good updates before a spike can be told
MEMORY = 0.98  # of the running mean of a loss


UpdateVerdict = Literal["good", "skipped", "roll back"]


class Guard:
    """Tells good updates from bad ones. All ranks give it the same numbers and so reach the same verdicts.

    A loss above its limit is made NaN on the rank that sees it; averaging spreads that to every rank's gradient, and
    every engine leaves out an update whose gradient is not finite. So a spike on any rank skips the update on all.

    Args:
        settings: what is put up with.
    """

    def __init__(self, settings: GuardBlock):
        self._settings = settings
        self.state = GuardState()

    @property
    def error_limit(self) -> float:
        """The squared error per pixel above which an update of the generator is left out."""
        return self._limit(self.state.error, self.state.num_good)

    def ratio_limit(self, stage: StageState, chance: float) -> float:
        """The loss above which an update of the ratio is left out.

        It is never below `chance`, the loss of a ratio that says nothing: one that tells the two sides apart without
        fail has a mean loss near zero, and ten times that is no spike.
        """
        known = self.state.ratio_round == (stage.stage, stage.started)
        return max(self._limit(self.state.ratio_loss, self.state.ratio_num_good if known else 0), chance)

    def observe(self, error: float, ratio_loss: float | None, stage: StageState, bad: bool) -> UpdateVerdict:
        """Takes what one batch gave, over all ranks.

        Args:
            error: squared error per pixel.
            ratio_loss: mean loss of its ratio updates, None where there were none.
            stage: of the ratio.
            bad: whether an update was left out.
        """
        state = self.state
        if bad:
            self.state = replace(state, bad_in_row=state.bad_in_row + 1)
            return "roll back" if self.state.bad_in_row >= self._settings.max_skips else "skipped"
        if math.isfinite(error):
            mean = _running_mean(state.error, state.num_good, error)
            state = replace(state, error=mean, num_good=state.num_good + 1)
        if ratio_loss is not None and math.isfinite(ratio_loss):
            key = (stage.stage, stage.started)
            count = state.ratio_num_good if state.ratio_round == key else 0
            mean = _running_mean(state.ratio_loss, count, ratio_loss)
            state = replace(state, ratio_loss=mean, ratio_num_good=count + 1, ratio_round=key)
        self.state = replace(state, bad_in_row=0)
        return "good"

    def roll_back(self, before: GuardState, shift: int) -> None:
        """The state after going back to a checkpoint, whose own state was `before`, and on by `shift` samples."""
        number = self.state.rollbacks + 1
        stage, started = before.ratio_round
        scale = min(before.rate_scale, self.state.rate_scale) * self._settings.rate_factor
        self.state = replace(
            before, rollbacks=number, rate_scale=scale, bad_in_row=0, ratio_round=(stage, started + shift)
        )

    def check_run_rollbacks(self, reason: str) -> None:
        """Ends the run where it has gone back as often as it may.

        Raises:
            DivergenceError: it has.
        """
        if self.state.rollbacks >= self._settings.max_rollbacks:
            raise DivergenceError(
                f"Training diverged: {reason}, after the run had gone back to a checkpoint {self.state.rollbacks} "
                "times, each time with lower learning rates; lower train.generator.rate, train.ratio.rate or the "
                "chain's step_size (see guard.jsonl for the batches), then run the same command to go on."
            )

    def values(self) -> dict[str, Any]:
        """The state as plain values."""
        return asdict(self.state)

    def load_values(self, values: dict[str, Any]) -> None:
        """Takes what `values` gave."""
        self.state = GuardState(**values | {"ratio_round": tuple(values["ratio_round"])})

    def _limit(self, mean: float, count: int) -> float:
        factor = self._settings.spike_factor
        return factor * mean if factor and count >= WARM_UPDATES else math.inf


def _running_mean(mean: float, count: int, value: float) -> float:
    """The mean of the first values, then one that forgets."""
    keep = min(count / (count + 1), MEMORY)
    return keep * mean + (1 - keep) * value


def check_stage_rollbacks(state: StageState, criteria: Criteria) -> None:
    """Stops the run if a stage was rolled back more often than it may be.

    Raises:
        DivergenceError: it was.
    """
    if state.rollbacks > criteria.max_rollbacks:
        raise DivergenceError(
            f"Stage {state.stage} was rolled back {state.rollbacks} times, {criteria.max_rollbacks} are allowed; lower "
            "train.ratio.rate, then run the same command to go on from the last checkpoint."
        )
