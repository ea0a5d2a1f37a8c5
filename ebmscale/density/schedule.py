"""The stage scheduler: a pure function from a stage's state and held-out evidence to a decision.

A stage has two phases. It *explores* at the full learning rate until its held-out loss stops improving, or, where the
target stands still, until the caller's record says that going on pays less than a new stage (`Worth`). Then it
*settles*: the rate falls to zero along a cosine. Settling removes the noise of the last updates, which would otherwise
be part of every later prior. After settling, a ratio whose evidence is significant is frozen (`Advance`). One whose
evidence is not significant ends the sequence (`Finish`), or starts another round if the target still changes.

Time is counted in samples (`samples_seen`), so a schedule means the same for every batch size. There is no hidden
state: the recorded evidence gives the same decisions again.
"""

import math
from dataclasses import dataclass, replace

from ebmscale.density.evidence import Evidence
from ebmscale.density.losses import chance_loss


@dataclass(frozen=True)
class Criteria:
    """When a stage settles, ends, or counts as diverged.

    Attributes:
        max_stages: the largest K; 0 keeps the base density as the prior.
        min_samples: samples that exploring lasts at least.
        max_samples: samples that a whole stage lasts at most.
        settle_samples: samples over which the learning rate falls to zero before a stage is frozen.
        patience: measurements of evidence without improvement that end exploring.
        min_improvement: the smallest fall of the held-out loss, in nats, that counts as an improvement.
        significance: z, in standard errors. A ratio is significant if its KL bound exceeds z of its standard errors.
            It is also significant if the bound is positive and its NCE loss is more than z standard errors below
            chance (f = 0). The second test is for a wide gap, where few samples determine the bound.
        target_moves: whether q still changes because a generator is training. A ratio that is not significant then
            starts another round and does not end the sequence.
        auc_drop: a fall of the AUC by this much below the best of the stage counts as divergence.
        min_ess: an effective sample size (a fraction) below this counts as divergence. 0 switches the test off; the
            first stage across a wide gap has few effective samples without having diverged.
        max_rollbacks: roll-backs of one stage that are allowed before the run counts as diverged.
        ends_at: `samples_seen` at the end of the run, where the last stage is frozen. None means no end.
        evidence_every: samples between measurements. Settling begins at the last measurement that leaves enough
            samples before the end. If there is none, it begins at once and takes the samples that are left.
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
    """The state of a stage: plain numbers, saved in every checkpoint.

    Attributes:
        stage: k, counted from 1.
        started: `samples_seen` when this round of the stage started.
        best_loss: held-out loss at the last improvement, in nats. Several small falls together make an improvement.
        best_auc: highest held-out AUC so far.
        stale: measurements since the loss last improved.
        settling_since: `samples_seen` when settling began; None while exploring.
        settles_for: samples that settling lasts; None is `Criteria.settle_samples`.
        rate_scale: factor of the learning rate. Every roll-back halves it.
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
    settles_for: int | None = None


@dataclass(frozen=True)
class Worth:
    """What the record of a run says of a stage, where the target stands still.

    Attributes:
        reason: in words.
        settles_for: samples over which the learning rate falls, from where it began to or from now on; None to go on.
    """

    reason: str
    settles_for: int | None = None


@dataclass(frozen=True)
class Decision:
    """What to do with the current ratio. `reason` says why, in words."""

    reason: str


class Hold(Decision):
    """Continue to train the ratio."""


class Advance(Decision):
    """Freeze the ratio, multiply it into the prior, and start the next stage from the zero function."""


class RollBack(Decision):
    """The ratio diverged: restart the stage at half the learning rate."""


@dataclass(frozen=True)
class Finish(Decision):
    """The sequence is complete. `freeze`: whether the current ratio becomes part of it."""

    freeze: bool = False


def rate_factor(state: StageState, criteria: Criteria, now: int) -> float:
    """Factor of the ratio's learning rate at `now` samples.

    It is `state.rate_scale` while exploring, and falls to 0 along half a cosine while settling.
    """
    if state.settling_since is None or _settle_samples(state, criteria) == 0:
        return state.rate_scale
    length = max(_settled_at(state, criteria) - state.settling_since, 1)
    progress = min((now - state.settling_since) / length, 1.0)
    return state.rate_scale * 0.5 * (1 + math.cos(math.pi * progress))


def is_settled(state: StageState, criteria: Criteria, now: int) -> bool:
    """Whether the stage is to be concluded at `now` samples: its learning rate has fallen to zero."""
    return not state.finished and state.settling_since is not None and now >= _settled_at(state, criteria)


def decide(
    state: StageState, evidence: Evidence, criteria: Criteria, now: int, worth: Worth | None = None
) -> tuple[Decision, StageState]:
    """The decision at `now` samples, and the state of the stage after it is carried out.

    Args:
        state: of the stage.
        evidence: of its ratio.
        criteria: when it moves on.
        now: `samples_seen`.
        worth: decides how long the stage explores and settles; without it the criteria do.
    """
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
        return _hold_or_settle(state, criteria, now) if worth is None else _explore_by(worth, state, now)
    if not is_settled(state, criteria, now):
        if worth is not None and worth.settles_for is not None:
            return Hold(f"settling ends: {worth.reason}"), replace(state, settles_for=worth.settles_for)
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


def _hold_or_settle(state: StageState, criteria: Criteria, now: int) -> tuple[Decision, StageState]:
    """Whether to continue exploring or to begin settling."""
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


def _explore_by(worth: Worth, state: StageState, now: int) -> tuple[Decision, StageState]:
    """What the record says of a stage that explores."""
    if worth.settles_for is None:
        return Hold(f"exploring: {worth.reason}"), state
    return Hold(f"settling begins: {worth.reason}"), replace(state, settling_since=now, settles_for=worth.settles_for)


def _settle_samples(state: StageState, criteria: Criteria) -> int:
    return criteria.settle_samples if state.settles_for is None else state.settles_for


def _settled_at(state: StageState, criteria: Criteria) -> int:
    """`samples_seen` at which settling ends: after its samples, or at the end of the run."""
    since = state.settling_since or 0
    end = since + _settle_samples(state, criteria)
    return end if criteria.ends_at is None or since >= criteria.ends_at else min(end, criteria.ends_at)


def _conclude(state: StageState, evidence: Evidence, criteria: Criteria, now: int) -> tuple[Decision, StageState]:
    """The decision about a settled ratio."""
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
        return Hold(f"{bound}: not significant yet, another round"), fresh
    return Finish(f"{bound}: not significant at {criteria.significance:g} standard errors"), replace(
        fresh, finished=True
    )
