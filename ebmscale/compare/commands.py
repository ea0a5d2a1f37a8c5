"""The program's own commands, in processes that do not outlive the comparison."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from ebmscale.errors import Interrupted
from ebmscale.rendezvous import RANK_VARIABLES

PR_SET_PDEATHSIG = 1  # of prctl(2)
STOPPED = "Stopped; finished work is kept: run the same command to continue."


class RunFailed(Exception):
    """A command ended with an error; this carries its message."""


class Commands:
    """Commands of the program in processes of their own, which do not outlive the comparison."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()  # so that a stop misses no process that is just being started

    def run(self, *arguments: str, **environment: str) -> None:
        """Runs a command to its end, with additional environment variables.

        Raises:
            RunFailed: it ended with an error.
            Interrupted: it was stopped.
        """
        command = [sys.executable, "-m", "ebmscale", *arguments]
        alone = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        with self._lock:
            if self._stopped:
                raise Interrupted(STOPPED)
            process = subprocess.Popen(
                command,
                env=alone | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=_ends_with_this_process(),  # noqa: PLW1509 (it takes no lock that a thread may hold)
            )
            self._running.add(process)
        _, errors = process.communicate()
        self._running.discard(process)
        if process.returncode == Interrupted.exit_code or self._stopped:
            raise Interrupted(STOPPED)
        if process.returncode:
            lines = [line for line in errors.strip().splitlines() if line.strip()]
            raise RunFailed(lines[-1] if lines else f"ended with exit code {process.returncode}")

    def stop(self) -> None:
        """Asks all running commands to save and end."""
        with self._lock:
            self._stopped = True
            for process in list(self._running):
                process.terminate()


def _ends_with_this_process() -> Callable[[], None]:
    """What a new process calls first: it gets SIGTERM when the thread that began it ends, even by SIGKILL."""
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the call
            os._exit(Interrupted.exit_code)

    return prepare
