"""Long jobs in parts: on processes of this machine, on the workers of a Ray cluster, or in this process.

A part is lost with its worker, and is done again by another one. The parts that are done stay done, so the same command
continues a job that stopped.
"""

from collections.abc import Callable

from ebmscale.errors import Interrupted, StorageError, WorkersLostError
from ebmscale.runtime.part_job import Crew, PartedJob, Workers
from ebmscale.runtime.part_processes import ProcessCrew
from ebmscale.runtime.part_tasks import task_crew
from ebmscale.stop import StopSignal

MOST_LOSSES = 3
"""So many workers that one part has ended end the job."""

Progress = Callable[[int, int, str], None]


def run_parts(job: PartedJob, workers: Workers, progress: Progress = lambda done, total, unit: None) -> None:
    """Does the parts of a job that are missing.

    Args:
        job: the job.
        workers: who does them.
        progress: called with the number of parts that are done, the number of all, and the unit.

    Raises:
        Interrupted: a signal asked to stop; the parts that are done stay.
        WorkersLostError: one part ended several workers.
        StorageError: workers on other machines write to their own disks.
        EbmscaleError: what a part raised.
    """
    done = set(job.done())
    missing = [part for part in range(job.num_parts) if part not in done]
    progress(len(done), job.num_parts, "parts")
    if not missing:
        return
    with StopSignal().listening() as stop:
        counter = _Counter(len(done), job.num_parts, progress, stop)
        if not workers.num:
            work = job.open()
            for part in missing:
                counter.check()
                work(part)
                counter.add()
        elif workers.address is None:
            num = min(workers.num, len(missing))
            _share_out(ProcessCrew(job, num), missing, num, counter)
        else:
            with task_crew(job, workers) as crew:
                _share_out(crew, missing, workers.num, counter)
    lost = sorted(set(missing) - set(job.done()))
    if lost:
        raise StorageError(
            f"The output of {len(lost):,} parts is not here, though workers have written it: they are on other "
            "machines and write to their own disks. Give an address that all machines reach."
        )


class _Counter:
    """Counts the parts that are done, and ends the job on request."""

    def __init__(self, done: int, total: int, progress: Progress, stop: StopSignal):
        self._done, self._total, self._progress, self._stop = done, total, progress, stop

    def add(self) -> None:
        """One more part is done."""
        self._done += 1
        self._progress(self._done, self._total, "parts")

    def check(self) -> None:
        """Raises `Interrupted` if a signal asked to stop."""
        if self._stop.name is not None:
            raise Interrupted(
                f"interrupted by {self._stop.name}; {self._done:,} of {self._total:,} parts are done, and the same "
                "command does the others."
            )


def _share_out(crew: Crew, missing: list[int], num: int, counter: _Counter) -> None:
    """Gives the parts to workers, again where a worker was lost."""
    waiting, busy = list(reversed(missing)), 0
    losses: dict[int, int] = {}
    try:
        while waiting or busy:
            counter.check()
            while waiting and busy < num:
                crew.do(waiting.pop())
                busy += 1
            for part, lost in crew.wait():
                busy -= 1
                if lost is None:
                    counter.add()
                    continue
                losses[part] = losses.get(part, 0) + 1
                if losses[part] >= MOST_LOSSES:
                    raise WorkersLostError(
                        f"Part {part} ended {MOST_LOSSES} workers (the last one: {lost}); it may need more memory than "
                        "there is. The other parts that are done stay done."
                    )
                waiting.append(part)
    finally:
        crew.close()
