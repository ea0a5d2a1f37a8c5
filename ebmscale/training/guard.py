"""Skips bad updates (a loss that is not finite, a spike, lost chains), rolls a run back, or ends it as diverged."""

import math
from dataclasses import asdict, replace
from typing import Any, Literal

from ebmscale.config import GuardBlock
from ebmscale.density.schedule import Criteria, StageState
from ebmscale.errors import DivergenceError
from ebmscale.model.run_documents import GuardState

WARM_UPDATES = 20  # good updates before a loss is compared with the running mean
MEMORY = 0.98  # weight of the old value in the running mean of a loss


UpdateVerdict = Literal["good", "skipped", "roll back"]


class Guard:
    """Decides whether updates are good or bad. All ranks pass the same numbers and so get the same verdicts.

    A rank whose loss is above the limit makes it NaN. Averaging makes the gradient of every rank NaN, and every engine
    skips an update whose gradient is not finite. So a spike on one rank skips the update on all ranks.

    Args:
        settings: limits.
    """

    def __init__(self, settings: GuardBlock):
        self._settings = settings
        self.state = GuardState()

    @property
    def error_limit(self) -> float:
        """The squared error per pixel above which an update of the generator is skipped."""
        return self._limit(self.state.error, self.state.num_good)

    def ratio_limit(self, stage: StageState, chance: float) -> float:
        """The loss, in nats, above which an update of the ratio is skipped.

        It is never below `chance`, the loss of the zero ratio. The mean loss of a ratio that separates the two sides
        perfectly is near zero, so a multiple of that mean is not a spike.
        """
        known = self.state.ratio_round == (stage.stage, stage.started)
        return max(self._limit(self.state.ratio_loss, self.state.ratio_num_good if known else 0), chance)

    def observe(self, error: float, ratio_loss: float | None, stage: StageState, bad: bool) -> UpdateVerdict:
        """Updates the state with the results of one batch over all ranks, and returns the verdict.

        Args:
            error: squared error per pixel.
            ratio_loss: mean loss of the ratio's updates in nats, None if there were none.
            stage: of the ratio.
            bad: whether an update was skipped.
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
        """Sets the state after a return to a checkpoint.

        Args:
            before: the state of the guard in the checkpoint.
            shift: number of samples that are skipped after the checkpoint.
        """
        number = self.state.rollbacks + 1
        stage, started = before.ratio_round
        scale = min(before.rate_scale, self.state.rate_scale) * self._settings.rate_factor
        self.state = replace(
            before, rollbacks=number, rate_scale=scale, bad_in_row=0, ratio_round=(stage, started + shift)
        )

    def check_run_rollbacks(self, reason: str) -> None:
        """Ends the run if no further roll-back is allowed.

        Args:
            reason: what happened, for the message.

        Raises:
            DivergenceError: the run was rolled back `guard.max_rollbacks` times.
        """
        if self.state.rollbacks >= self._settings.max_rollbacks:
            raise DivergenceError(
                f"Training diverged: {reason}, after the run had gone back to a checkpoint {self.state.rollbacks} "
                "times, each time with lower learning rates; lower train.generator.rate, train.ratio.rate or the "
                "chain's step_size (see guard.jsonl for the batches), then run the same command to resume."
            )

    def values(self) -> dict[str, Any]:
        """The state as values for JSON."""
        return asdict(self.state)

    def load_values(self, values: dict[str, Any]) -> None:
        """Restores the state from the result of `values`."""
        self.state = GuardState(**values | {"ratio_round": tuple(values["ratio_round"])})

    def _limit(self, mean: float, count: int) -> float:
        factor = self._settings.spike_factor
        return factor * mean if factor and count >= WARM_UPDATES else math.inf


def _running_mean(mean: float, count: int, value: float) -> float:
    """The arithmetic mean of the first values, and later an exponential moving average."""
    keep = min(count / (count + 1), MEMORY)
    return keep * mean + (1 - keep) * value


def check_stage_rollbacks(state: StageState, criteria: Criteria) -> None:
    """Ends the run if a stage was rolled back too often.

    Raises:
        DivergenceError: the stage was rolled back more than `criteria.max_rollbacks` times.
    """
    if state.rollbacks > criteria.max_rollbacks:
        raise DivergenceError(
            f"Stage {state.stage} was rolled back {state.rollbacks} times, {criteria.max_rollbacks} are allowed; lower "
            "train.ratio.rate, then run the same command to resume from the last checkpoint."
        )
