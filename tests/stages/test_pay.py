"""How long a stage of a run lasts where its target stands still: the record decides, within the bounds of the keys."""

import math
from dataclasses import replace

import pytest

from ebmscale.config import StagesBlock
from ebmscale.density.evidence import Evidence
from ebmscale.density.schedule import Advance, Criteria, Finish, StageState, decide, is_settled
from ebmscale.stages.pay import Pay
from ebmscale.stages.scheduler import CHANCE, MEMORISES
from ebmscale.stages.stage_trainer import StageTrainer
from tests.stages.moving_gaussian import BATCH, train
from tests.stages.test_density_negatives import HELD_OUT, SETTINGS, STAGES, equal, make_trainer, restore, saved

EVIDENCE = Evidence(1.0, 0.01, 0.8, 0.01, 1.0, 0.01, 0.5)
CRITERIA = Criteria(max_stages=5, min_samples=1000, max_samples=80_000, settle_samples=0)
BLOCK = StagesBlock(max_stages=5, min_samples=1000, max_samples=80_000)
STILL = replace(
    SETTINGS,
    target_moves=False,
    ends_at=40 * BATCH,
    stages=STAGES.model_copy(update={"significance": 2.0, "min_samples": 2 * BATCH, "max_samples": 24 * BATCH}),
)


def explored(power: float, size: float, ends_at: int | None = None, every: int = 500) -> tuple[int, int | None]:
    """How long a stage explores and settles whose loss falls below chance by `size` (t / 10,000)^`power`."""
    pay, state = Pay(BLOCK, ends_at), StageState(started=50_000)
    for age in range(every, 100_000, every):
        loss = max(CHANCE - size * (age / 10_000) ** power, 0.001)
        pay.observe(state, replace(EVIDENCE, loss=loss), 50_000 + age)
        found = pay.worth(state, 50_000 + age)
        if found.settles_for is not None:
            return age, found.settles_for
    raise AssertionError("it never settled")


def test_a_narrow_gap_is_explored_as_long_as_it_may_be_and_a_wide_one_is_left_to_several_stages() -> None:
    assert explored(0.3, 0.3) == (20_000, 60_000)  # a quarter of the longest stage, and the rest of it
    wide = explored(0.2, 1.3)
    assert wide[0] < 5_000
    assert wide[1] == 3 * wide[0]


def test_a_stage_explores_at_least_its_least_samples() -> None:
    assert explored(0.0, 1.3, every=100) == (1000, 3000)


@pytest.mark.parametrize("left", [8_000, 20_000, 60_000])
def test_a_stage_ends_with_the_run(left: int) -> None:
    """Exploring ends where three times as much is left, so that all that is left is used."""
    explores, settles = explored(0.9, 0.3, ends_at=50_000 + left)
    assert settles is not None
    assert explores + settles == pytest.approx(left, abs=2_000)


def test_what_stages_gave_decides_whether_another_begins() -> None:
    pay = Pay(BLOCK, None)

    def ended(stage: int, nats: float, error: float = 0.01, gain: float = 1.0) -> str | None:
        evidence = replace(EVIDENCE, kl_bound=nats, kl_bound_error=error)
        return pay.ended(StageState(stage=stage), evidence, gain, 0.0, 1000)

    assert ended(1, 2.0) is None
    assert "little is left" in str(ended(2, 0.002, 0.0005))
    assert "the last of 5" in str(ended(5, 1.0))
    assert pay.values()["paid"][0] == {"stage": 1, "gain": 1.0, "nats": 2.0, "nats_error": 0.01, "work": 6000.0}
    wide = Pay(BLOCK, None)
    for stage, nats in ((1, 100.0), (2, 0.15)):  # a thousandth of all nats, though significant
        evidence = replace(EVIDENCE, kl_bound=nats, kl_bound_error=0.01)
        said = wide.ended(StageState(stage=stage), evidence, 1.0, 0.0, 1000)
    assert "little is left" in str(said)
    other = Pay(BLOCK, 1200)
    evidence = replace(EVIDENCE, kl_bound=1.0)
    assert "the time allowed is used" in str(other.ended(StageState(), evidence, 1.0, 0.0, 1000))


def test_losses_that_are_not_finite_are_no_part_of_the_record() -> None:
    pay = Pay(BLOCK, None)
    pay.observe(StageState(), replace(EVIDENCE, loss=math.nan), 500)
    assert pay.values()["curve"] == []
    assert pay.worth(StageState(), 500).settles_for is None


def test_a_stage_that_memorises_stops_exploring_and_then_settling() -> None:
    pay, state = Pay(BLOCK, None), StageState()
    losses = (1.2, 1.1, 1.12, 1.13, 1.14, 1.15)
    for place, loss in enumerate(losses):
        pay.observe(state, replace(EVIDENCE, loss=loss), 1000 * (place + 1))
    found = pay.worth(state, 6000)
    assert found.reason == MEMORISES
    assert found.settles_for == 18_000
    state = replace(state, settling_since=6000, settles_for=18_000)
    pay.observe(state, replace(EVIDENCE, loss=1.14), 7000)
    assert pay.worth(state, 7000).settles_for is None
    for now in (8000, 9000, 10_000, 11_000):
        pay.observe(state, replace(EVIDENCE, loss=1.07 + now / 100_000), now)
    worth = pay.worth(state, 11_000)
    decision, state = decide(state, EVIDENCE, CRITERIA, 11_000, worth)
    assert "settling ends: the held-out loss rises" in decision.reason
    assert is_settled(state, CRITERIA, 11_000)


def test_a_second_measurement_at_the_same_time_takes_the_place_of_the_first() -> None:
    pay = Pay(BLOCK, None)
    for loss in (1.0, 1.1, 1.2, 1.3):
        pay.observe(StageState(), replace(EVIDENCE, loss=loss), 1500)
        assert pay.worth(StageState(), 1500).settles_for is None
    assert pay.values()["curve"] == [[1500, 1.3]]


def still() -> StageTrainer:
    return make_trainer(STILL)


def test_a_run_goes_on_while_it_pays_and_then_ends_the_sequence() -> None:
    trainer = still()
    kinds = train(trainer, 0, 40, HELD_OUT)
    assert trainer.state.finished
    assert trainer.prior.num_stages >= 1
    assert Finish in kinds
    paid = trainer.values()["pay"]["paid"]
    assert len(paid) == trainer.prior.num_stages
    assert all(one["work"] <= STILL.stages.max_samples * 100 for one in paid)


def test_two_interruptions_in_a_row_change_nothing_where_the_target_stands_still() -> None:
    whole = still()
    kinds = train(whole, 0, 24, HELD_OUT)
    assert Advance in kinds or Finish in kinds
    state, found = saved(still()), []
    for begin, end in ((0, 2), (2, 10), (10, 24)):
        trainer = still()
        restore(trainer, state)
        found += train(trainer, begin, end, HELD_OUT)
        state = saved(trainer)
    assert found == kinds
    expected = saved(whole)
    assert state["values"] == expected["values"]
    assert all(equal(state["parts"][name], expected["parts"][name]) for name in expected["parts"])


def test_a_stage_is_measured_with_one_noise_and_judged_with_another() -> None:
    trainer = still()
    assert [trainer.measured_at(position) for position in (0, BATCH, 5 * BATCH)] == [0, 0, 0]
    trainer.state = StageState(stage=2, started=3 * BATCH, settling_since=4 * BATCH, settles_for=2 * BATCH)
    assert trainer.measured_at(5 * BATCH) == 3 * BATCH
    assert trainer.measured_at(6 * BATCH) == 6 * BATCH
    assert make_trainer().measured_at(5 * BATCH) == 5 * BATCH


def test_a_checkpoint_of_an_earlier_version_begins_its_record_now() -> None:
    trainer, state = still(), saved(still())
    del state["values"]["pay"]
    restore(trainer, state)
    assert trainer.values()["pay"] == {"curve": [], "paid": []}
