import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ebmscale.runtime.scheduling import children_use_batch_scheduling, use_default_scheduling

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has SCHED_BATCH")
POLICY = "import os; print(os.sched_getscheduler(0))"


def policy_of_a_child() -> int:
    return int(subprocess.run([sys.executable, "-c", POLICY], capture_output=True, check=True).stdout)


def test_children_started_inside_use_batch_scheduling_and_later_ones_do_not() -> None:
    before = os.sched_getscheduler(0)
    with children_use_batch_scheduling():
        assert policy_of_a_child() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before
    assert policy_of_a_child() == before


def test_a_thread_returns_to_default_scheduling_and_so_do_its_children() -> None:
    def inside() -> tuple[int, int, int]:
        with children_use_batch_scheduling():
            waiting = os.sched_getscheduler(0)
            use_default_scheduling()
            return waiting, os.sched_getscheduler(0), policy_of_a_child()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == (os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_OTHER)


def test_another_policy_than_the_inherited_one_is_left_alone() -> None:
    def inside() -> int:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        use_default_scheduling()
        return os.sched_getscheduler(0)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == os.SCHED_IDLE
