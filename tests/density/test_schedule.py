"""The stage scheduler: scenarios as tables, and properties that hold for every history."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.density.evidence import Evidence
from ebmscale.density.schedule import (
    Advance,
    Criteria,
    Decision,
    Finish,
    Hold,
    RollBack,
    StageState,
    decide,
    rate_factor,
)

CRITERIA = Criteria(max_stages=3, min_samples=300, max_samples=1000, settle_samples=200, patience=2)
GOOD = Evidence(loss=1.0, loss_error=0.02, auc=0.8, calibration_error=0.01, kl_bound=0.5, kl_bound_error=0.01, ess=0.5)
NOTHING = replace(GOOD, loss=1.386, auc=0.51, kl_bound=0.019)  # bound and loss within two standard errors
FALLING = [replace(GOOD, loss=1.3 - 0.1 * i) for i in range(10)]

EXPLORE = Hold("exploring")
SETTLE = Hold("settling: the learning rate is falling")


def play(
    history: list[Evidence], criteria: Criteria = CRITERIA, state: StageState | None = None
) -> tuple[list[Decision], list[StageState]]:
    """Decisions and states on evidence that comes every 100 samples, the first at 100."""
    decisions, states = [], [state or StageState()]
    for i, evidence in enumerate(history):
        decision, new = decide(states[-1], evidence, criteria, now=100 * (i + 1))
        decisions.append(decision)
        states.append(new)
    return decisions, states[1:]


def test_explore_then_settle_then_advance() -> None:
    """Stale from 200 on; the minimum holds until 300; 200 samples of settling; the ratio is frozen at 500."""
    decisions, states = play([GOOD] * 5)
    assert decisions[:2] == [EXPLORE, EXPLORE]
    assert decisions[2] == Hold("settling begins: no better loss in 2 measurements")
    assert decisions[3] == SETTLE
    assert isinstance(decisions[4], Advance)
    assert [state.settling_since for state in states] == [None, None, 300, 300, None]
    assert states[4] == StageState(stage=2, started=500)


def test_an_improvement_resets_patience_and_a_smaller_one_does_not() -> None:
    better, hardly = replace(GOOD, loss=0.9), replace(GOOD, loss=0.8995)
    assert [state.stale for state in play([GOOD, GOOD, better, hardly])[1]] == [0, 1, 0, 1]


def test_a_stage_that_keeps_improving_settles_in_time_for_its_maximum() -> None:
    decisions, _ = play(FALLING)
    assert decisions[:7] == [EXPLORE] * 7
    assert decisions[7] == Hold("settling begins: the stage's time is nearly used")
    assert decisions[8] == SETTLE
    assert isinstance(decisions[9], Advance)  # at 1000 = max_samples


def test_patience_waits_for_the_minimum() -> None:
    _, states = play([GOOD] * 7, replace(CRITERIA, min_samples=600))
    assert [state.settling_since for state in states] == [None] * 5 + [600, 600]


def test_without_settling_a_stage_is_concluded_at_the_next_measurement() -> None:
    decisions, _ = play([GOOD] * 4, replace(CRITERIA, settle_samples=0))
    assert [type(decision) for decision in decisions] == [Hold, Hold, Hold, Advance]


@pytest.mark.parametrize(
    ("bound", "loss", "significance", "kind"),
    [
        (0.021, 1.38, 2.0, Advance),
        (0.019, 1.38, 2.0, Finish),
        (0.019, 1.38, 1.5, Advance),
        (-0.5, 1.38, 2.0, Finish),
        (0.019, 1.345, 2.0, Advance),  # the loss is 0.0413 below 2 log 2, its error 0.02
        (0.019, 1.347, 2.0, Finish),
        (-0.001, 1.0, 2.0, Finish),
    ],
)
def test_a_fixed_target_finishes_when_bound_and_loss_are_within_their_errors(
    bound: float, loss: float, significance: float, kind: type[Decision]
) -> None:
    criteria = replace(CRITERIA, target_moves=False, significance=significance)
    decisions, states = play([replace(GOOD, kl_bound=bound, loss=loss)] * 5, criteria)
    assert isinstance(decisions[-1], kind)
    assert states[-1].finished is (kind is Finish)
    if isinstance(decisions[-1], Finish):
        assert not decisions[-1].freeze
        assert states[-1].stage == 1


def test_a_moving_target_gets_another_round_instead() -> None:
    decisions, states = play([NOTHING] * 5)
    assert isinstance(decisions[-1], Hold)
    assert "another round" in decisions[-1].reason
    assert states[-1] == StageState(stage=1, started=500)


@pytest.mark.parametrize("target_moves", [True, False])
def test_the_last_stage_is_frozen_and_the_sequence_ends(target_moves: bool) -> None:
    criteria = replace(CRITERIA, target_moves=target_moves)
    decisions, states = play([GOOD] * 6, criteria, StageState(stage=3))
    assert isinstance(decisions[4], Finish)
    assert decisions[4].freeze
    assert states[4].finished
    assert states[4].stage == 3
    assert decisions[5] == Hold("the sequence is complete")
    assert states[5] == states[4]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (replace(GOOD, loss=math.nan), "not finite"),
        (replace(GOOD, grad_norm=math.inf), "not finite"),
        (replace(GOOD, auc=0.59), "AUC fell from 0.800 to 0.590"),
        (replace(GOOD, ess=0.004), "collapsed to 0.40%"),
    ],
)
def test_a_divergence_rolls_back_at_half_the_rate(trouble: Evidence, reason: str) -> None:
    criteria = replace(CRITERIA, min_ess=0.005)
    decisions, states = play([GOOD, GOOD, trouble, trouble], criteria, StageState(stage=2))
    assert isinstance(decisions[2], RollBack)
    assert reason in decisions[2].reason
    assert states[2] == StageState(stage=2, started=300, rate_scale=0.5, rollbacks=1)
    assert rate_factor(states[2], criteria, 300) == 0.5
    if "AUC" not in reason:  # after a roll-back the AUC has no best yet to fall from
        assert isinstance(decisions[3], RollBack)
        assert (states[3].rate_scale, states[3].rollbacks) == (0.25, 2)


def test_a_divergence_is_seen_while_settling_too() -> None:
    decisions, states = play([GOOD, GOOD, GOOD, replace(GOOD, auc=0.5)])
    assert isinstance(decisions[3], RollBack)
    assert states[3].settling_since is None


def test_no_ess_is_too_small_by_default() -> None:
    assert isinstance(play([replace(GOOD, ess=1e-9)])[0][0], Hold)


def test_the_rate_falls_along_a_half_cosine_and_ends_at_zero() -> None:
    state = StageState(settling_since=300, rate_scale=0.5)
    factors = [rate_factor(state, CRITERIA, now) for now in (300, 400, 500, 900)]
    assert factors == pytest.approx([0.5, 0.25, 0.0, 0.0])
    assert rate_factor(replace(state, settling_since=None), CRITERIA, 900) == 0.5


numbers = st.floats(-1, 2) | st.just(math.nan)
evidence = st.builds(
    Evidence,
    loss=numbers,
    auc=st.floats(0, 1),
    calibration_error=st.floats(0, 1),
    kl_bound=numbers,
    kl_bound_error=st.floats(0, 0.5),
    ess=st.floats(0, 1),
)
criteria = st.builds(
    Criteria,
    max_stages=st.integers(1, 4),
    min_samples=st.integers(1, 500),
    max_samples=st.integers(300, 1000),
    settle_samples=st.integers(0, 299),
    patience=st.integers(1, 3),
    target_moves=st.booleans(),
    min_ess=st.floats(0, 0.3),
)
histories = st.lists(evidence, max_size=60)


@given(criteria=criteria, since=st.integers(0, 10**9), scale=st.floats(0, 1), times=st.lists(st.integers(0, 10**4)))
def test_the_rate_stays_within_its_scale_and_falls_while_settling(
    criteria: Criteria, since: int, scale: float, times: list[int]
) -> None:
    state = StageState(settling_since=since, rate_scale=scale)
    factors = [rate_factor(state, criteria, since + time) for time in sorted(times)]
    assert all(0 <= factor <= scale for factor in factors)
    assert all(later <= earlier for earlier, later in pairwise(factors))


@given(criteria=criteria, history=histories)
def test_recorded_evidence_replays_to_the_same_decisions_from_any_point(
    criteria: Criteria, history: list[Evidence]
) -> None:
    decisions, states = play(history, criteria)
    assert (decisions, states) == play(history, criteria)
    before = [StageState(), *states]
    for i, (item, state) in enumerate(zip(history, before, strict=False)):
        assert decide(state, item, criteria, 100 * (i + 1)) == (decisions[i], states[i])


@given(criteria=criteria, history=histories)
def test_stages_never_go_back_and_move_only_by_their_decision(criteria: Criteria, history: list[Evidence]) -> None:
    decisions, states = play(history, criteria)
    for decision, earlier, later in zip(decisions, [StageState(), *states], states, strict=False):
        assert later.stage - earlier.stage == isinstance(decision, Advance)
        assert later.finished == (earlier.finished or isinstance(decision, Finish))
        assert 1 <= later.stage <= criteria.max_stages
        assert later.stale >= 0


@given(criteria=criteria, history=histories)
def test_a_stage_lasts_no_longer_than_its_maximum_and_one_measurement_each_for_its_two_ends(
    criteria: Criteria, history: list[Evidence]
) -> None:
    _, states = play(history, criteria)
    for i, state in enumerate(states):
        if not state.finished:
            assert 100 * (i + 1) - state.started < criteria.max_samples + 200


@given(
    end=st.integers(40, 300),
    batch=st.integers(1, 90),
    every=st.integers(20, 300),
    settle=st.integers(0, 3000),
    least_most=st.tuples(st.integers(1, 2000), st.integers(1, 3000)) | st.none(),
)
def test_a_stage_that_explores_when_the_run_nears_its_end_is_frozen_there(
    end: int, batch: int, every: int, settle: int, least_most: tuple[int, int] | None
) -> None:
    """Evidence falls due every `every` samples, is taken after the next batch, and once more at the end.

    A single stage that lasts the whole run, as `nce` has it (None), is always frozen where there is time to settle.
    """
    end, gap = end * batch, -(-every // batch) * batch
    least, most = least_most or (end, 2 * end)
    criteria = Criteria(
        max_stages=10**6 if least_most else 1,
        min_samples=least,
        max_samples=settle + most,
        settle_samples=settle,
        ends_at=end,
        evidence_every=gap,
    )
    state, began, frozen = StageState(), [], []
    for now in range(batch, end + 1, batch):
        if now // every == (now - batch) // every and now != end:
            continue
        decision, state = decide(state, GOOD, criteria, now)
        if "the run's time" in decision.reason:
            began.append(now)
        if isinstance(decision, (Advance, Finish)):
            frozen.append(now)
    if least_most is None and end > settle + gap:
        assert len(frozen) == 1
        assert began
    for now in began:
        assert settle == 0 or any(max(now, end - gap) < at <= end for at in frozen)
