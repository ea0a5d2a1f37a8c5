"""What a worker on Ray is started with. Nothing here needs torch."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ebmscale.config import RunConfig

FINISHED = "finished"


Report = Callable[[dict[str, float]], None]
"""Takes numbers by name, with `samples_seen`."""


class WorkerSettings(NamedTuple):
    """What a worker is started with.

    Attributes:
        config: of the run.
        board: handle of the board's actor.
        all_ranks: whether ranks other than the first say what they do as well.
        report: takes what rank 0 measures, where a search wants it.
    """

    config: RunConfig
    board: Any
    all_ranks: bool
    report: Report | None = None


Body = Callable[[WorkerSettings], str]
"""What a worker does; gives `FINISHED`, or for which of the cluster's reasons it left."""
