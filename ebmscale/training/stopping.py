"""Agreement of the ranks of a run on a stop."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from ebmscale.errors import Interrupted
from ebmscale.stop import StopSignal
from ebmscale.world import World

T = TypeVar("T")


POLL_EVERY_S = 0.5


class Stopped(Exception):
    """All ranks left their work at the same step, because one was asked to stop."""


class StopPoll:
    """Ends a long chain on all ranks between the same two steps, soon after any rank was asked to stop.

    The ranks communicate every fixed number of steps. The number is large enough to make the cost negligible.

    Args:
        stop: of this process.
        world: rank and size of this process.
    """

    def __init__(self, stop: StopSignal, world: World):
        self._stop, self._world = stop, world
        self._every, self._count = 1, 0

    def __call__(self) -> None:
        """Call it after every step of a chain, on all ranks.

        Raises:
            Stopped: a rank was asked to stop.
        """
        self._count += 1
        if self._count % self._every == 0 and self._world.any(self._stop.name is not None):
            raise Stopped

    def pace(self, step_s: float) -> None:
        """Sets the number of steps between two agreements from the mean seconds of a step, equal on all ranks."""
        self._every = max(1, round(POLL_EVERY_S / max(step_s, 1e-6)))
        self._count = 0


def on_first(world: World, stop: StopSignal, action: Callable[[Callable[[], None]], T]) -> T:
    """Runs an action on rank 0, for any length of time, while the other ranks wait (collective).

    Args:
        world: rank and size of this process.
        stop: a stop of any rank ends the action.
        action: takes a function that it must call regularly. That function raises when the action has to end.

    Returns:
        The result of the action, on every rank.

    Raises:
        Interrupted: a rank was asked to stop.
        EbmscaleError: the error of the action, on every rank.
    """
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Stopped

    with ThreadPoolExecutor(1, thread_name_prefix="first") as pool:
        job = pool.submit(action, check) if world.is_first else None
        acting = True
        while acting:
            if job is not None:
                wait([job], timeout=POLL_EVERY_S)
            flags = torch.tensor([float(job is not None and not job.done()), float(stop.name is not None)])
            acting, stopping = (bool(flag) for flag in world.sum(flags.to(world.device)) > 0)
            if stopping:
                cancelled.set()
                stop.event.set()  # another rank than rank 0 may have been asked
    error = world.broadcast(job.exception() if job is not None else None)
    if isinstance(error, Stopped | Interrupted) or (error is None and stopping):
        raise Interrupted("Stopped before training began; nothing was lost. Run the same command to begin again.")
    if error is not None:
        raise error
    result: T = world.broadcast(job.result() if job is not None else None)
    return result
