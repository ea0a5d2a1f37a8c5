"""A training run against a real S3 server through every kind of fault; `tools/chaos` runs longer ones."""

import random
from dataclasses import replace

import pytest

from tests.chaos.campaign import Campaign, Result
from tests.chaos.faults import KINDS, NEW_TOPOLOGY
from tests.chaos.history import check_logs, check_samples
from tests.chaos.leg import Topology, TracedBatch
from tests.chaos.plan import Limits, Plan, make_schedule, topologies
from tests.chaos.table import rows, to_markdown
from tests.s3_server import KEY, SECRET, S3Server, missing_programs

NUM_SAMPLES, SIZE, LENGTH = 40, 2, 8


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """A function that runs a campaign on a server of its own, which the faults may kill."""
    if missing := missing_programs():
        pytest.skip(f"no S3 server: install the Debian packages of {', '.join(missing)}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    server = S3Server(tmp_path / "ceph")

    def run(plan: Plan) -> Result:
        server.start()
        result = Campaign(plan, tmp_path / "legs", server, print).run()
        print(to_markdown(result))
        return result

    try:
        yield run
    finally:
        server.stop()


def assert_survived(result: Result) -> None:
    lost = [fault for fault in result.faults if not fault.survived]
    assert not lost
    assert not [check for check in result.checks if not check.ok]


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.timeout(1200)
def test_every_kind_of_fault_once_and_the_end_is_that_of_an_undisturbed_run(campaign):
    plan = Plan(len(KINDS), 3, (Topology(1),), checkpoint_every=320, limits=Limits(outage_s=14))
    result = campaign(plan)
    assert {row["fault"] for row in rows(result)} == {kind.name for kind in KINDS}
    assert "the end equals that of an undisturbed run bit for bit" in {check.name for check in result.checks}
    assert_survived(result)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.deepspeed
@pytest.mark.timeout(3600)
def test_64_faults_on_two_processes_that_share_the_state(campaign):
    assert_survived(campaign(Plan(64, seed=11, topologies=(Topology(2, zero_stage=2),))))


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.deepspeed
@pytest.mark.timeout(3600)
def test_64_faults_with_another_topology_at_each_restart(campaign):
    result = campaign(Plan(64, seed=12, topologies=topologies((1, 2, 4), (None, 0, 1, 2, 3))))
    assert sum(fault.kind == NEW_TOPOLOGY for fault in result.faults) > 20
    assert_survived(result)


def trained(first: int, last: int) -> list[TracedBatch]:
    """What two ranks trace when they train these batches in an order without surprises."""
    return [
        TracedBatch(rank, SIZE, start, start + LENGTH, numbers, tuple(str(number % NUM_SAMPLES) for number in numbers))
        for start in range(first * LENGTH, last * LENGTH, LENGTH)
        for rank in range(SIZE)
        for numbers in [tuple(range(start + rank, start + LENGTH, SIZE))]
    ]


def failures(*legs: list[TracedBatch]) -> list[str]:
    """The names of the checks that fail."""
    return [check.name.partition(",")[0] for check in check_samples(legs, 10 * LENGTH) if not check.ok]


def test_repeated_work_is_no_repeated_sample():
    assert failures(trained(0, 4), [], trained(3, 10)) == []


def test_a_gap_and_an_overlap_within_a_leg_are_found():
    tiles = "the trained ranges tile the run"
    assert tiles in failures(trained(0, 4), trained(5, 10))
    assert tiles in failures(trained(0, 4) + trained(3, 10))
    assert tiles in failures(trained(0, 9))
    assert tiles in failures([batch for batch in trained(0, 10) if (batch.rank, batch.start) != (1, 16)])


def test_a_sample_that_comes_twice_in_an_epoch_is_found():
    first, *others = trained(0, 10)
    twice = replace(first, keys=("1", *first.keys[1:]))
    assert failures([twice, *others]) == ["each sample once an epoch"]
    assert "a sample's number has one key in all legs" in failures([twice], trained(0, 10))


def event(position: int, stage: int, num_frozen: int, decision: str = "Hold") -> dict:
    freeze = decision == "Advance"
    return {
        "samples_seen": position, "stage": stage, "num_frozen": num_frozen, "decision": decision, "freeze": freeze
    }  # fmt: skip


def test_doubled_steps_and_broken_stages_are_found():
    events = [event(10, 1, 0), event(20, 1, 0, "Advance"), event(30, 2, 1)]
    metrics = [{"samples_seen": position} for position in (10, 20, 30)]
    every = {"metrics": 10, "events": 10}

    def broken(metrics: list, events: list) -> list[bool]:
        return [not check.ok for check in check_logs(metrics, events, every, 30)]

    assert broken(metrics, events) == [False, False, False]
    assert broken([*metrics[:2], metrics[1], metrics[2]], events) == [True, False, False]
    assert broken(metrics[1:], events) == [True, False, False]
    assert broken(metrics, [events[0], events[1], event(30, 1, 0)]) == [False, False, True]
    assert broken(metrics, [events[0], events[1], event(30, 2, 0)]) == [False, False, True]


def test_a_schedule_has_every_kind_equally_often():
    schedule = make_schedule(3 * len(KINDS) + 5, random.Random(4))
    kinds = [kind for kind, followers in schedule for kind in (kind, *followers)]
    assert {kinds.count(kind) for kind in KINDS} == {3, 4}
    assert all(kind.when == "ends" for kind, followers in schedule if followers)
