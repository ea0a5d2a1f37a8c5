"""How the ranks of a run agree on a stop."""

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
    """All ranks left what they were doing, at the same place, because one was asked to stop."""


class StopPoll:
    """Lets all ranks leave a long chain together, between two steps, soon after any of them was asked to stop.

    Ranks agree at fixed steps, so many apart that agreeing costs nothing beside them.

    Args:
        stop: of this process.
        world: this process's place.
    """

    def __init__(self, stop: StopSignal, world: World):
        self._stop, self._world = stop, world
        self._every, self._count = 1, 0

    def __call__(self) -> None:
        """To be called after every step of a chain, on all ranks.

        Raises:
            Stopped: a rank was asked to stop.
        """
        self._count += 1
        if self._count % self._every == 0 and self._world.any(self._stop.name is not None):
            raise Stopped

    def pace(self, step_s: float) -> None:
        """Takes the mean seconds of a step, the same number on all ranks."""
        self._every = max(1, round(POLL_EVERY_S / max(step_s, 1e-6)))
        self._count = 0


def on_first(world: World, stop: StopSignal, action: Callable[[Callable[[], None]], T]) -> T:
    """Rank 0 acts, however long it takes, while the others wait and listen (collective).

    Args:
        world: this process's place.
        stop: a stop of any rank ends the action.
        action: takes a function to be called now and then, which raises where it has to end.

    Returns:
        What the action returned, on every rank.

    Raises:
        Interrupted: a rank was asked to stop.
        EbmscaleError: what the action raised, on every rank.
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
                stop.event.set()  # the rank that was asked may be another one than the one that acts
    error = world.broadcast(job.exception() if job is not None else None)
    if isinstance(error, Stopped | Interrupted) or (error is None and stopping):
        raise Interrupted("Stopped before training began; nothing was lost: run the same command to begin again.")
    if error is not None:
        raise error
    result: T = world.broadcast(job.result() if job is not None else None)
    return result
