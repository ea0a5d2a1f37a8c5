"""When a process may take a folder that another one owns: in closed form, with the time as an argument."""

import os
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.training import claim
from ebmscale.training.claim import (
    BEAT_S,
    LEASE_S,
    PATIENCE_S,
    BeatWatch,
    Claim,
    Launch,
    OwnerSeen,
    held,
    judge_owner,
    launch_of_torchrun,
    replaces,
)

HERE = "/runs/mine"
ELSEWHERE = OwnerSeen(released=False, replaced=False, alive=None, watched_s=0.0, still_s=0.0)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (ELSEWHERE, "wait"),
        (replace(ELSEWHERE, released=True), "take"),
        (replace(ELSEWHERE, replaced=True), "take"),
        (replace(ELSEWHERE, replaced=True, alive=True), "take"),  # the launcher has ended that attempt
        (replace(ELSEWHERE, alive=False), "take"),
        (replace(ELSEWHERE, alive=True), "wait"),
        (replace(ELSEWHERE, alive=True, watched_s=PATIENCE_S, still_s=PATIENCE_S), "refuse"),
        (replace(ELSEWHERE, alive=True, watched_s=99.0, still_s=99.0), "refuse"),  # it hangs, and may continue
        (replace(ELSEWHERE, watched_s=LEASE_S, still_s=LEASE_S - 0.1), "wait"),
        (replace(ELSEWHERE, watched_s=LEASE_S, still_s=LEASE_S), "take"),
        (replace(ELSEWHERE, watched_s=PATIENCE_S, still_s=0.0), "refuse"),
        (replace(ELSEWHERE, watched_s=PATIENCE_S, still_s=0.1), "wait"),  # it moved before the patience was over
        (replace(ELSEWHERE, watched_s=PATIENCE_S + 3, still_s=1.0), "refuse"),
    ],
)
def test_the_decision(seen: OwnerSeen, verdict: str) -> None:
    assert judge_owner(seen) == verdict


def observed(beats: list[tuple[float, bytes]]) -> tuple[str, float]:
    """The first decision other than to wait, and its time, for an owner on another machine with these beats."""
    watching = BeatWatch(beats[0][0])
    for now, beat in beats:
        watched_s, still_s = watching.look(beat, now)
        verdict = judge_owner(replace(ELSEWHERE, watched_s=watched_s, still_s=still_s))
        if verdict != "wait":
            return verdict, now
    return "wait", beats[-1][0]


@given(start=st.floats(-1e9, 1e9), phase=st.floats(0, BEAT_S), step=st.floats(0.2, 1.0))
def test_an_owner_that_beats_is_never_taken_from(start: float, phase: float, step: float) -> None:
    """For any time of the observer's clock, and any offset between the two processes."""
    times = [index * step for index in range(int(30 / step))]
    verdict, now = observed([(start + now, str(int((now + phase) // BEAT_S)).encode()) for now in times])
    assert verdict == "refuse"
    assert now - start <= PATIENCE_S + BEAT_S + 2 * step


@given(last=st.floats(0, PATIENCE_S - 0.5))
def test_a_dead_owner_is_taken_from_a_lease_after_its_last_beat(last: float) -> None:
    times = [index * 0.25 for index in range(200)]
    verdict, now = observed([(now, b"1" if now <= last else b"2") for now in times])
    assert verdict == "take"
    assert LEASE_S <= now <= last + LEASE_S + 0.5


def test_time_in_which_the_storage_could_not_be_read_does_not_count() -> None:
    assert observed([(0.0, b"1"), (60.0, b"1"), (60.2, b"1"), (61.0, b"2"), (62.0, b"2")])[0] == "wait"
    assert (
        observed([(30.0 * index, b"1") for index in range(9)])[0] == "take"
    )  # a slow storage does not prevent a decision


def test_a_process_is_known_by_its_start_and_not_by_its_number_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        other = Claim.of_this_process(HERE, None).model_copy(
            update={"pid": process.pid, "started": claim._start_of(process.pid)}
        )
        assert other.is_alive(HERE) is True
        assert other.model_copy(update={"started": "1"}).is_alive(HERE) is False
        process.kill()
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is None:
            pass
        assert other.is_alive(HERE) is False  # also before its parent has waited for it
    assert other.is_alive(HERE) is False


def test_another_machine_another_boot_and_a_copied_folder_tell_nothing() -> None:
    mine = Claim.of_this_process(HERE, None)
    held.add(mine.id)
    try:
        assert mine.is_alive(HERE) is True
        assert mine.is_alive("/runs/copy") is None
        for other in ({"host": "elsewhere"}, {"machine": "another boot"}, {"machine": ""}):
            assert mine.model_copy(update=other).is_alive(HERE) is None
    finally:
        held.discard(mine.id)
    assert mine.is_alive(HERE) is False  # this process has released it


def test_a_later_attempt_of_the_same_launch_replaces_an_earlier_one() -> None:
    assert replaces(Launch("a", 2), Launch("a", 1))
    assert not replaces(Launch("a", 1), Launch("a", 2))  # an earlier attempt does not replace a later one
    assert not replaces(Launch("a", 1), Launch("a", 1))
    assert not replaces(Launch("b", 2), Launch("a", 1))
    assert not replaces(None, Launch("a", 1))
    assert not replaces(Launch("a", 1), None)


def test_torchrun_names_a_launch_where_it_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert launch_of_torchrun() == Launch("torchrun job-7", 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launch_of_torchrun() is None


def test_a_record_says_who_and_since_when() -> None:
    record = Claim.of_this_process(HERE, Launch("a", 1))
    assert Claim.model_validate_json(record.model_dump_json()) == record
    assert str(record).startswith(f"process {os.getpid()} of ")
    assert f"on {record.host}, since 20" in str(record)
