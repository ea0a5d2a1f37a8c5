"""The settings of a worker on Ray. This module does not import torch."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ebmscale.config import RunConfig

FINISHED = "finished"


Report = Callable[[dict[str, float]], None]
"""Receives numbers by name, with `samples_seen` among them."""


class WorkerSettings(NamedTuple):
    """The settings of a worker.

    Attributes:
        config: of the run.
        board: handle of the board's actor.
        all_ranks: whether to show ranks other than the first as well.
        report: receives the measurements of rank 0, for a search.
    """

    config: RunConfig
    board: Any
    all_ranks: bool
    report: Report | None = None


Body = Callable[[WorkerSettings], str]
"""What a worker does; returns `FINISHED`, or the reason of the cluster for which it exited."""
