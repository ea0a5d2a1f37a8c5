"""Ray tasks that do the parts of a job on the workers of a cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ebmscale.address import Address
from ebmscale.config import RayBlock
from ebmscale.errors import EbmscaleError
from ebmscale.runtime.part_job import PartedJob, Workers, opened
from ebmscale.runtime.ray_session import ray_session

WAIT_S = 0.5


class TaskCrew:
    """One task a part. See `part_job.Crew`. Ray places the tasks; a process of its keeps the job open for the next one.

    Args:
        ray: connected.
        job: is put into Ray once.
        gpus: of a task.
    """

    def __init__(self, ray: Any, job: PartedJob, gpus: float):
        self._ray, self._job = ray, ray.put(job)
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_do_part)
        self._running: dict[Any, int] = {}

    def do(self, part: int) -> None:
        """See `part_job.Crew.do`."""
        self._running[self._task.remote(self._job, part)] = part

    def wait(self) -> list[tuple[int, str | None]]:
        """See `part_job.Crew.wait`."""
        ready, _ = self._ray.wait(list(self._running), timeout=WAIT_S)
        ended: list[tuple[int, str | None]] = []
        for task in ready:
            part, lost = self._running.pop(task), None
            try:
                self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:
                cause = getattr(error, "cause", None)
                raise (cause if isinstance(cause, EbmscaleError) else error) from None
            except self._ray.exceptions.RayError as error:  # its worker or its machine is gone
                lost = type(error).__name__
            ended.append((part, lost))
        return ended

    def close(self) -> None:
        """See `part_job.Crew.close`."""
        for task in self._running:
            self._ray.cancel(task, force=True)


@contextmanager
def task_crew(job: PartedJob, workers: Workers) -> Iterator[TaskCrew]:
    """A crew on a cluster, to which this process is connected inside the context."""
    address = None if workers.address is None else Address(workers.address)
    with ray_session(RayBlock(num_workers=workers.num, address=address)) as ray:
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        yield TaskCrew(ray, job, 1 if workers.on_gpu and has_gpus else 0)


def _do_part(job: PartedJob, part: int) -> None:
    opened(job)(part)
