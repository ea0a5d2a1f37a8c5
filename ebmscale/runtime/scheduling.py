"""Whose turn it is on a machine's cores: Ray's own processes wait until a training thread's is over.

Ray keeps a dozen processes on a node that wake a hundred times a second for next to nothing, and each time push a
training thread off its core. Under Linux's SCHED_BATCH they wait for the end of its turn, some milliseconds.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def children_wait_their_turn() -> Iterator[None]:
    """Processes that are started inside, and theirs, do not interrupt others (Linux; elsewhere nothing happens)."""
    if not hasattr(os, "SCHED_BATCH"):
        yield
        return
    before = os.sched_getscheduler(0)
    _schedule(os.SCHED_BATCH)
    try:
        yield
    finally:
        _schedule(before)


def come_first() -> None:
    """This thread, and those that it starts, are scheduled as usual again, whatever they inherited."""
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH:
        _schedule(os.SCHED_OTHER)


def _schedule(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))
