import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ebmscale.runtime.scheduling import children_wait_their_turn, come_first

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has SCHED_BATCH")
POLICY = "import os; print(os.sched_getscheduler(0))"


def policy_of_a_child() -> int:
    return int(subprocess.run([sys.executable, "-c", POLICY], capture_output=True, check=True).stdout)


def test_what_is_started_inside_waits_and_what_is_started_later_does_not() -> None:
    before = os.sched_getscheduler(0)
    with children_wait_their_turn():
        assert policy_of_a_child() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before
    assert policy_of_a_child() == before


def test_a_thread_that_comes_first_no_longer_waits_and_neither_does_what_it_starts() -> None:
    def inside() -> tuple[int, int, int]:
        with children_wait_their_turn():
            waiting = os.sched_getscheduler(0)
            come_first()
            return waiting, os.sched_getscheduler(0), policy_of_a_child()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == (os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_OTHER)


def test_another_policy_than_the_inherited_one_is_left_alone() -> None:
    def inside() -> int:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        come_first()
        return os.sched_getscheduler(0)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == os.SCHED_IDLE
