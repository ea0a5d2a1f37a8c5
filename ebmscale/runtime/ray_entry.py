"""Where Ray Train enters a worker. Driver and controller name this function, and do without torch and our training."""

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


def enter(parameters: dict[str, Any]) -> Any:
    """Runs `parameters["body"]`, or where it is None the body of every run, with `parameters["settings"]`."""
    body: Body | None = parameters["body"]
    if body is None:
        from ebmscale.runtime.ray_worker import ray_worker  # noqa: PLC0415 (with torch)

        body = ray_worker
    return body(parameters["settings"])
