"""What a long job in parts is, and what workers do for it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol


class PartedJob(Protocol):
    """A long job in parts: a frozen value of addresses and numbers, which is sent to other processes."""

    @property
    def num_parts(self) -> int:
        """How many parts there are; they are numbered from 0."""
        ...

    def done(self) -> Collection[int]:
        """The parts whose output is there."""
        ...

    def __hash__(self) -> int: ...

    def open(self) -> Callable[[int], None]:
        """In a worker: opens what all parts need, and returns what does a part and writes its output as a whole."""
        ...


class Crew(Protocol):
    """Workers that do parts of one job."""

    def do(self, part: int) -> None:
        """Gives a part to a worker that is free."""
        ...

    def wait(self) -> list[tuple[int, str | None]]:
        """The parts that ended since the last call, after a short wait: with None, or with how their worker was lost.

        Raises:
            Exception: what a part raised.
        """
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...


@dataclass(frozen=True)
class Workers:
    """Who does the parts.

    Attributes:
        num: processes; 0 is this process.
        address: of a Ray cluster, `auto`, or `local` for a Ray that starts here; None is processes without Ray.
        on_gpu: whether each needs a GPU, where the cluster has any.
    """

    num: int = 0
    address: str | None = None
    on_gpu: bool = False


@lru_cache(maxsize=1)
def opened(job: PartedJob) -> Callable[[int], None]:
    """What does the parts of a job in this process, opened once."""
    return job.open()
