"""Scheduling policies on Linux: Ray's own processes do not interrupt training threads.

Ray runs a dozen processes on a node. Each wakes about a hundred times a second for little work, and preempts a training
thread each time. Under SCHED_BATCH they wait until the thread's time slice ends, which takes some milliseconds.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def children_use_batch_scheduling() -> Iterator[None]:
    """Processes that start inside this context, and their children, run under SCHED_BATCH (on Linux only)."""
    if not hasattr(os, "SCHED_BATCH"):
        yield
        return
    before = os.sched_getscheduler(0)
    _schedule(os.SCHED_BATCH)
    try:
        yield
    finally:
        _schedule(before)


def use_default_scheduling() -> None:
    """Moves this thread, and those that it starts, from an inherited SCHED_BATCH back to the default policy."""
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH:
        _schedule(os.SCHED_OTHER)


def _schedule(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))
