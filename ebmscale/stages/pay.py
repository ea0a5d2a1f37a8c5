"""What a run's own record says of going on with a stage and of another one, where its target stands still.

The decisions are those of `stages/scheduler.py`. A run counts what a stage takes in samples. Every batch of images
brings as many updates as the others, so all is the same for any number of workers and after any interruption.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ebmscale.config import StagesBlock
from ebmscale.density.evidence import Evidence
from ebmscale.density.schedule import StageState, Worth
from ebmscale.stages.scheduler import MEMORISES, Bounds, Budget, after, explore, memorises
from ebmscale.stages.settings import StageSettings
from ebmscale.stages.trainer import EXPLORES


@dataclass(frozen=True)
class PaidStage:
    """A stage that is part of the prior: a `record.Paid`.

    Attributes:
        stage: k, from 1.
        gain: what its ratio was multiplied by.
        nats: J, the bound on KL(q || p_{k-1}), in nats.
        nats_error: its standard error.
        work: samples that it lasted, times what an update cost in evaluations of a network for a row.
    """

    stage: int
    gain: float
    nats: float
    nats_error: float
    work: float


class Pay:
    """The held-out losses of the stage in training, and what the stages before it gave.

    Args:
        stages: the bounds of a stage, in samples.
        ends_at: `samples_seen` at the run's end; None where there is none.
    """

    def __init__(self, stages: StagesBlock, ends_at: int | None):
        self._stages, self._ends_at = stages, ends_at
        self._curve: list[tuple[int, float]] = []
        self._paid: list[PaidStage] = []

    def observe(self, state: StageState, evidence: Evidence, now: int) -> None:
        """Adds a measurement of the stage at `now` samples, in place of an earlier one of the same time."""
        age = now - state.started
        if math.isfinite(evidence.loss) and age > 0:
            self._curve = [one for one in self._curve if one[0] < age]
            self._curve.append((age, evidence.loss))

    def worth(self, state: StageState, now: int) -> Worth:
        """Whether the stage goes on at its full rate, and else for how long the rate falls."""
        age = now - state.started
        if state.settling_since is not None:
            return Worth(MEMORISES, now - state.settling_since) if memorises(self._curve) else Worth("settling")
        if not self._curve:
            return Worth("the stage has no evidence yet")
        most = self._stages.max_samples
        bounds = Bounds(self._stages.min_samples / EXPLORES, most)
        verdict = explore(self._curve, self._paid, Budget(age, self._left(now), freezing=0.0), bounds)
        if verdict.goes_on:
            return Worth(verdict.reason)
        return Worth(verdict.reason, max(min(round(age * (1 / EXPLORES - 1)), most - age), 0))

    def ended(self, state: StageState, evidence: Evidence, gain: float, passes: float, now: int) -> str | None:
        """Records a stage that is frozen; why no other begins, or None.

        Args:
            state: of the stage.
            evidence: with the bound at the gain.
            gain: of the ratio.
            passes: evaluations of one network that a negative costs.
            now: `samples_seen`.
        """
        age = now - state.started
        paid = PaidStage(state.stage, gain, evidence.kl_bound, evidence.kl_bound_error, age * (6.0 + passes))
        before = sum(one.nats for one in self._paid)
        self._paid.append(paid)
        settings = StageSettings(max_stages=self._stages.max_stages, significance=self._stages.significance)
        verdict = after(paid, Budget(age, self._left(now)), settings, before)
        return None if verdict.goes_on else verdict.reason

    def restart(self) -> None:
        """Another round of a stage begins."""
        self._curve = []

    def values(self) -> dict[str, Any]:
        """The plain values of a checkpoint."""
        return {"curve": [list(one) for one in self._curve], "paid": [asdict(one) for one in self._paid]}

    def load_values(self, values: Mapping[str, Any] | None) -> None:
        """Takes what `values` gave; of an earlier version there is nothing, and the record begins now."""
        found = values or {"curve": [], "paid": []}
        self._curve = [(int(done), float(loss)) for done, loss in found["curve"]]
        self._paid = [PaidStage(**one) for one in found["paid"]]

    def _left(self, now: int) -> float:
        return math.inf if self._ends_at is None else max(self._ends_at - now, 0)
