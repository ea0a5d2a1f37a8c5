"""The stage scheduler: a pure function from a stage's state and held-out evidence to a decision.

A stage lives through two phases. It *explores* at the full learning rate until its held-out loss has stopped
improving; then it *settles*: the rate falls to zero along a cosine, since a ratio that is frozen while its weights
still jitter carries the jitter into every later prior. At the end of settling the ratio is frozen (`Advance`), or
found to say nothing (`Finish`, or another round if the target still moves).

Time is counted in samples (`samples_seen`), so a schedule means the same for every batch size. Nothing here has
hidden state: the recorded evidence replays to the same decisions.
"""

import math
from dataclasses import dataclass, replace

from ebmscale.density.evidence import Evidence
from ebmscale.density.losses import chance_loss


@dataclass(frozen=True)
class Criteria:
    """When a stage moves on.

    Attributes:
        max_stages: K at most; 0 keeps the base density as the prior.
        min_samples: exploring lasts at least this long.
        max_samples: a whole stage lasts at most this long.
        settle_samples: how long the learning rate takes to fall to zero before a stage is frozen.
        patience: measurements of evidence without improvement that end exploring.
        min_improvement: least fall of the held-out loss, in nats, that counts as an improvement.
        significance: a stage counts if its KL bound exceeds this many standard errors; or is positive while the NCE
            loss is so far below that of a ratio that says nothing: across a wide gap a few samples carry the bound.
        target_moves: whether q still changes (a generator is training). A ratio that says nothing then starts
            another round instead of ending the sequence.
        auc_drop: the AUC falling this far below the stage's best is a divergence.
        min_ess: an effective sample size (a fraction) below this is a divergence; 0 switches it off, since the
            first stage across a wide gap has few effective samples by right.
        max_rollbacks: roll-backs of one stage before the run counts as diverged.
        ends_at: `samples_seen` at the run's end, where the last stage is to be frozen; None: no end.
        evidence_every: samples between measurements. Settling begins at the last one that leaves it time before the
            end, or, where there is none, at once and in the time that is left.
    """

    max_stages: int
    min_samples: int
    max_samples: int
    settle_samples: int
    patience: int = 3
    min_improvement: float = 1e-3
    significance: float = 2.0
    target_moves: bool = True
    auc_drop: float = 0.2
    min_ess: float = 0.0
    max_rollbacks: int = 3
    ends_at: int | None = None
    evidence_every: int = 0


@dataclass(frozen=True)
class StageState:
    """Where stage `stage` is: plain numbers, kept in every checkpoint.

    Attributes:
        stage: k, counted from 1.
        started: `samples_seen` when this round of the stage started.
        best_loss: held-out loss at the last improvement; small falls add up to one.
        best_auc: highest held-out AUC so far.
        stale: measurements since the loss last improved.
        settling_since: `samples_seen` when settling began; None while exploring.
        rate_scale: factor of the learning rate, halved by every roll-back.
        rollbacks: roll-backs of this stage so far.
        finished: no further ratio is trained.
    """

    stage: int = 1
    started: int = 0
    best_loss: float = math.inf
    best_auc: float = 0.0
    stale: int = 0
    settling_since: int | None = None
    rate_scale: float = 1.0
    rollbacks: int = 0
    finished: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do with the current ratio, and why (`reason`: a phrase for people)."""

    reason: str


class Hold(Decision):
    """Go on training the ratio."""


class Advance(Decision):
    """Freeze the ratio into the prior and start the next stage from the zero function."""


class RollBack(Decision):
    """The ratio diverged: start the stage again at half the rate."""


@dataclass(frozen=True)
class Finish(Decision):
    """The sequence is complete. `freeze`: whether the current ratio becomes part of it."""

    freeze: bool = False


def rate_factor(state: StageState, criteria: Criteria, now: int) -> float:
    """Factor of the ratio's learning rate at `now` samples: 1 while exploring, a falling half-cosine while settling."""
    if state.settling_since is None or criteria.settle_samples == 0:
        return state.rate_scale
    length = max(_settled_at(state.settling_since, criteria) - state.settling_since, 1)
    progress = min((now - state.settling_since) / length, 1.0)
    return state.rate_scale * 0.5 * (1 + math.cos(math.pi * progress))


def decide(state: StageState, evidence: Evidence, criteria: Criteria, now: int) -> tuple[Decision, StageState]:
    """The decision at `now` samples, and the state that follows from carrying it out."""
    if state.finished:
        return Hold("the sequence is complete"), state
    trouble = _divergence(state, evidence, criteria)
    if trouble:
        return RollBack(trouble), replace(
            StageState(stage=state.stage, started=now), rate_scale=state.rate_scale / 2, rollbacks=state.rollbacks + 1
        )
    improved = evidence.loss < state.best_loss - criteria.min_improvement
    state = replace(
        state,
        best_loss=evidence.loss if improved else state.best_loss,
        best_auc=max(state.best_auc, evidence.auc),
        stale=0 if improved else state.stale + 1,
    )
    if state.settling_since is None:
        return _explore(state, criteria, now)
    if now < _settled_at(state.settling_since, criteria):
        return Hold("settling: the learning rate is falling"), state
    return _conclude(state, evidence, criteria, now)


def _divergence(state: StageState, evidence: Evidence, criteria: Criteria) -> str | None:
    """Why the stage counts as diverged, or None."""
    if not evidence.is_finite:
        return "the evidence is not finite"
    if evidence.auc < state.best_auc - criteria.auc_drop:
        return f"AUC fell from {state.best_auc:.3f} to {evidence.auc:.3f}"
    if evidence.ess < criteria.min_ess:
        return f"effective sample size collapsed to {evidence.ess:.2%}"
    return None


def _explore(state: StageState, criteria: Criteria, now: int) -> tuple[Decision, StageState]:
    """Whether exploring goes on, or settling begins."""
    age = now - state.started
    settling = replace(state, settling_since=now)
    if age >= criteria.min_samples and state.stale >= criteria.patience:
        return Hold(f"settling begins: no better loss in {state.stale} measurements"), settling
    if age >= criteria.max_samples - criteria.settle_samples:
        return Hold("settling begins: the stage's time is nearly used"), settling
    end, next_time = criteria.ends_at, now + criteria.evidence_every
    if end is not None and now < end and (end <= next_time or end < next_time + criteria.settle_samples):
        return Hold("settling begins: the run's time is nearly used"), settling
    return Hold("exploring"), state


def _settled_at(since: int, criteria: Criteria) -> int:
    """When settling that began at `since` is over: after its time, or at the run's end if that comes first."""
    end = since + criteria.settle_samples
    return end if criteria.ends_at is None or since >= criteria.ends_at else min(end, criteria.ends_at)


def _conclude(state: StageState, evidence: Evidence, criteria: Criteria, now: int) -> tuple[Decision, StageState]:
    """What becomes of a settled ratio."""
    bound = f"KL bound {evidence.kl_bound:.4f} +- {evidence.kl_bound_error:.4f} nats"
    fresh = StageState(stage=state.stage, started=now)
    bounded = evidence.kl_bound > criteria.significance * evidence.kl_bound_error
    gain = chance_loss(1) - evidence.loss
    if not bounded:
        bound += f", loss {gain:.4f} +- {evidence.loss_error:.4f} below chance"
    if bounded or (evidence.kl_bound > 0 and gain > criteria.significance * evidence.loss_error):
        if state.stage >= criteria.max_stages:
            return Finish(f"{bound}; the last of {criteria.max_stages} stages", freeze=True), replace(
                fresh, finished=True
            )
        return Advance(bound), replace(fresh, stage=state.stage + 1)
    if criteria.target_moves:
        return Hold(f"{bound}: nothing to add to the prior yet, another round"), fresh
    return Finish(f"{bound}: within {criteria.significance:g} standard errors of nothing"), replace(
        fresh, finished=True
    )
