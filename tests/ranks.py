"""Ranks as forks of a process that has imported everything: an import takes seconds, and ranks need the same one."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from ebmscale.world import leave_group
from tests.ports import free_port


def run_ranks(size: int, action: Callable[[], None]) -> None:
    """Runs an action on each of `size` ranks, with the environment that torchrun would give them.

    Ends this process if a rank fails. A process that calls this must not have used torch for anything but imports.
    """
    port = free_port()
    ranks = {_fork(rank, size, port, action) for rank in range(size)}
    failed = False
    while ranks:
        ended, status = os.wait()
        ranks.discard(ended)
        if status and not failed:
            failed = True
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
    if failed:
        sys.exit(f"a rank of {size} failed")


def _fork(rank: int, size: int, port: int, action: Callable[[], None]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if size > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        action()
        leave_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
