"""The ledger: exactly the trials that were asked for, none twice, whatever dies in between."""

import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmscale.errors import ConfigError, DamagedError, LostRunError
from ebmscale.search.ledger import Ledger
from ebmscale.search.trial import SearchStore, TrialRecord
from ebmscale.storage import Storage
from tests.search.conftest import POPULATION, make


def report(at: int, value: float) -> dict[str, float]:
    return {"samples_seen": float(at), "held_out_mse": value}


@settings(max_examples=25)
@given(st.data())
def test_any_course_of_crashes_ends_with_every_trial_done_once(data: st.DataObject) -> None:
    store = SearchStore(Storage.at(f"memory://course/{uuid.uuid4().hex}"))
    config, space = make(num_trials=4, max_failures=1000)
    lines: list[str] = []
    ledger = Ledger(store, config, space, tell=lines.append)
    at_work: dict[int, int] = {}
    for _ in range(400):
        if not ledger.left:
            break
        move = data.draw(st.sampled_from(["start", "work", "work", "work", "trial dies", "driver dies"]))
        if move == "driver dies":
            ledger, at_work = Ledger(store, config, space, tell=lines.append), {}
        elif move == "start" and len(at_work) < 2:
            record = ledger.next_trial()
            if record is not None:
                assert record.number not in at_work
                at_work[record.number] = record.samples_seen // 3000 * 3000  # its last checkpoint
                ledger.begun(record.number, "here", at_work[record.number])
        elif at_work:
            number = data.draw(st.sampled_from(sorted(at_work)))
            if move == "trial dies":
                ledger.died(number, "killed")
                at_work[number] = ledger.records[number].samples_seen // 3000 * 3000
            else:
                at_work[number] += 1000
                assert ledger.reported(number, report(at_work[number], 1 / at_work[number])) is None
                if at_work[number] >= 9000:
                    ledger.ended(number, None, {})
                    del at_work[number]
    while (record := Ledger(store, config, space).next_trial()) is not None:  # and to the end with nothing in the way
        ledger = Ledger(store, config, space, tell=lines.append)
        for at in range(1000, 9001, 1000):
            ledger.reported(record.number, report(at, 1 / at))
        ledger.ended(record.number, None, {})
    done = sorted(line.split()[1] for line in lines if " finished" in line)
    assert done == [str(number) for number in range(4)]
    for record in store.records().values():
        assert [r["samples_seen"] for r in record.reports] == [1000.0 * i for i in range(1, 10)]


def test_a_trial_that_was_broken_off_comes_first(store: SearchStore) -> None:
    config, space = make()
    first = Ledger(store, config, space)
    begun = [first.next_trial() for _ in range(3)]
    first.ended(1, None, {})
    again = Ledger(store, config, space)
    handed_out = [again.next_trial() for _ in range(3)]
    assert [r.number for r in handed_out if r] == [0, 2, 3]
    assert handed_out[0] == begun[0]


def test_a_trial_that_keeps_dying_has_failed_and_the_search_goes_on(store: SearchStore) -> None:
    config, space = make(max_failures=2)
    ledger = Ledger(store, config, space)
    assert ledger.next_trial() is not None
    for _ in range(2):
        ledger.died(0, "killed")
    ledger.reported(0, report(1000, 1.0))  # progress: the count begins anew
    for _ in range(3):
        ledger.died(0, "killed")
    assert store.read(0).status == "failed"
    assert "died 3 times with no progress between (killed)" in store.read(0).reason
    following = ledger.next_trial()
    assert following is not None
    assert following.number == 1


def test_the_configurations_own_values_are_tried_to_the_end(store: SearchStore) -> None:
    config, space = make(scheduler="asha")
    ledger = Ledger(store, config, space)
    heard: list[Any] = []
    ledger.use_stop_rule(lambda *said: not heard.append(said))
    for number in range(2):
        ledger.next_trial()
        order = ledger.reported(number, report(1000, 0.4))
        assert (order is not None) == (number == 1)
    assert heard == [(0, 1000, 0.4), (1, 1000, 0.4)]


def test_a_stopped_trial_is_recorded_before_it_is_told(store: SearchStore) -> None:
    config, space = make(scheduler="asha", default_first=False)
    ledger = Ledger(store, config, space)
    ledger.use_stop_rule(lambda number, samples_seen, value: value > 0.5)
    ledger.next_trial()
    assert ledger.reported(0, report(1000, 0.4)) is None
    order = ledger.reported(0, report(2000, 0.6))
    assert order is not None
    assert order.kind == "stop"
    assert store.read(0).status == "stopped"
    late = ledger.reported(0, report(3000, 0.1))
    assert late is not None
    assert late.kind == "leave"
    assert store.read(0).samples_seen == 2000


def test_a_trial_at_its_end_is_not_stopped(store: SearchStore) -> None:
    config, space = make(scheduler="asha", default_first=False)
    ledger = Ledger(store, config, space)
    ledger.use_stop_rule(lambda number, samples_seen, value: True)
    ledger.next_trial()
    assert ledger.reported(0, report(9000, 1.0)) is None


def test_a_judge_is_told_what_was_reported_before(store: SearchStore) -> None:
    config, space = make(scheduler="asha", objectives=[{"metric": "held_out_mse", "direction": "max"}])
    ledger = Ledger(store, config, space)
    ledger.next_trial()
    ledger.reported(0, report(1000, 0.4))
    heard: list[Any] = []
    Ledger(store, config, space).use_stop_rule(lambda *said: bool(heard.append(said)))
    assert heard == [(0, 1000, -0.4)]  # smaller is better


def test_a_trial_moves_with_its_record(store: SearchStore) -> None:
    config, space = make(**POPULATION)
    ledger = Ledger(store, config, space)
    orders = {}
    for number in range(4):
        ledger.next_trial()
        for at in (1000, 2500):
            orders[number] = ledger.reported(number, report(at, float(number)))
    assert [number for number, order in orders.items() if order] == [1, 2, 3]
    for number in (1, 2, 3):
        moved = store.read(number)
        assert moved.folder == f"{number:04d}-1"
        assert moved.origins[0].donor == 0
        assert moved.origins[0].samples_seen == 2500


def test_another_search_in_the_same_place_is_refused(store: SearchStore) -> None:
    config, space = make()
    store.claim(config, space)
    assert store.load() == (config, space)
    more = space.model_copy(update={"num_trials": 20, "max_failures": 9})
    store.claim(config, more)
    with pytest.raises(ConfigError, match="other values of seed"):
        store.claim(config, more.model_copy(update={"seed": 5}))
    with pytest.raises(ConfigError, match=r"other values of model\.sigma"):
        store.claim(config.model_copy(update={"model": config.model.model_copy(update={"sigma": 0.5})}), more)


def test_a_damaged_record_is_named(store: SearchStore) -> None:
    store.write(TrialRecord(number=3, values={}))
    store.storage.publish("records/0003.json", b"{")
    with pytest.raises(DamagedError, match=r"0003.json is damaged"):
        store.records()


def test_records_that_are_not_listed_yet_are_found(store: SearchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    config, space = make(num_trials=4)
    ledger = Ledger(store, config, space)
    for _ in range(3):
        record = ledger.next_trial()
        assert record is not None
        ledger.reported(record.number, report(1000, 0.5))
    known = store.records()
    for listed in ([], ["0001.json"], ["0002.json"]):
        monkeypatch.setattr(Storage, "list", lambda self, path="", listed=listed: listed)
        assert store.records() == known
        assert Ledger(store, config, space).records == known


def test_a_ledger_that_lost_its_search_writes_nothing(store: SearchStore) -> None:
    config, space = make(num_trials=2)
    lost = False

    def check() -> None:
        if lost:
            raise LostRunError("taken over")

    ledger = Ledger(store, config, space, check=check)
    record = ledger.next_trial()
    assert record is not None
    lost, known = True, store.records()
    for change in (
        ledger.next_trial,
        lambda: ledger.begun(0, "here", 0),
        lambda: ledger.reported(0, report(1000, 0.5)),
        lambda: ledger.died(0, "killed"),
        lambda: ledger.ended(0, None, {}),
    ):
        with pytest.raises(LostRunError):
            change()
        assert store.records() == known
