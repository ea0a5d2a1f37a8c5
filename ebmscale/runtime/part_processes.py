"""Processes of this machine that do the parts of a job."""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ebmscale.machine import num_cpus
from ebmscale.runtime.part_job import PartedJob
from ebmscale.runtime.variables import variables
from ebmscale.stop import SIGNALS

WAIT_S = 0.5
END_S = 5.0


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    part: int | None = None


class ProcessCrew:
    """Processes that are told part numbers over a pipe. See `part_job.Crew`.

    Args:
        job: is sent to each.
        num: of processes; each has its share of the cores.
    """

    def __init__(self, job: PartedJob, num: int):
        self._job, self._num = job, num
        self._workers: list[_Worker] = []

    def do(self, part: int) -> None:
        """See `part_job.Crew.do`."""
        free = next((one for one in self._workers if one.part is None), None) or self._start()
        free.part = part
        with suppress(OSError):  # it has just ended, as `wait` will see
            free.connection.send(part)

    def wait(self) -> list[tuple[int, str | None]]:
        """See `part_job.Crew.wait`."""
        wait([one.connection for one in self._workers] + [one.process.sentinel for one in self._workers], WAIT_S)
        ended: list[tuple[int, str | None]] = []
        for worker in list(self._workers):
            is_alive = worker.process.is_alive()
            try:
                answer = worker.connection.recv() if worker.connection.poll() else None
            except (EOFError, OSError):
                is_alive, answer = False, None
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                ended.append((answer, None))
                worker.part = None
            if not is_alive:
                self._bury(worker)
                if worker.part is not None:
                    ended.append((worker.part, f"exit code {worker.process.exitcode}"))
        return ended

    def close(self) -> None:
        """See `part_job.Crew.close`."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in list(self._workers):
            self._bury(worker)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        number = len(self._workers)
        process = context.Process(target=_serve, args=(self._job, there), name=f"part-worker-{number}", daemon=True)
        with variables(_environment(number, max(num_cpus() // self._num, 1))):
            process.start()
        there.close()
        self._workers.append(_Worker(process, here))
        return self._workers[-1]

    def _bury(self, worker: _Worker) -> None:
        worker.process.join(END_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)


def _environment(number: int, threads: int) -> dict[str, str]:
    """The variables with which a worker starts: its share of the cores, and the GPU that is its turn."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads), "LOCAL_RANK": str(number)}


def _serve(job: PartedJob, connection: Connection) -> None:
    """A worker: does the parts whose numbers come, and answers with the number or with what went wrong."""
    for number in SIGNALS:  # they are for the process that shares out the parts; it ends this one
        signal.signal(number, signal.SIG_DFL if number is signal.SIGTERM else signal.SIG_IGN)
    work: Callable[[int], None] | None = None
    while True:
        try:
            part = connection.recv()
        except (EOFError, OSError):  # the process that shares out the parts is gone
            return
        try:
            work = work or job.open()
            work(part)
            answer: object = part
        except Exception as error:
            answer = _sendable(error)
        with suppress(OSError):
            connection.send(answer)


def _sendable(error: Exception) -> Exception:
    """The error, or one with its text where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
