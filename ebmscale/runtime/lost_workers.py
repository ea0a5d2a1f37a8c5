"""Decides whether a run continues after it has lost workers. The decision uses plain values only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

REPEATS = 3  # crashes at the same batch after which the run stops
KEYS_SHOWN = 8


@dataclass(frozen=True)
class WorkerLoss:
    """One loss of workers, and of the work since the last checkpoint.

    Attributes:
        cause: in words, such as "rank 1 on 10.0.0.2 was killed".
        start: samples_seen at which the lost workers had started, None if they had not opened the run.
        position: samples_seen at the start of the batch in which it happened, None if there was no batch.
        exact: whether `position` is certain; otherwise the workers may have trained on a few more batches.
        of_node: whether a whole machine was lost; no sample can cause that.
        keys: the samples of that batch on the ranks that were lost first.
    """

    cause: str
    start: int | None = None
    position: int | None = None
    exact: bool = False
    of_node: bool = False
    keys: tuple[str, ...] = ()


def reason_to_stop(losses: Sequence[WorkerLoss], max_failures: int) -> str | None:
    """Returns a sentence on why the run has to stop after the last of these losses; None to continue.

    Args:
        losses: all losses of the run so far, the latest last.
        max_failures: the number of losses in a row without a new checkpoint that the run accepts.
    """
    last = losses[-1]
    crashes = _trailing(losses, lambda loss: not loss.of_node and loss.exact and loss.position == last.position)
    if last.position is not None and crashes >= REPEATS:
        shown = ", ".join(last.keys[:KEYS_SHOWN])
        more = f" and {len(last.keys) - KEYS_SHOWN} more" if len(last.keys) > KEYS_SHOWN else ""
        return (
            f"The run crashed {crashes} times at the same place, in the batch after {last.position:,} samples "
            f"({last.cause}); look at its samples {shown}{more}, then run the same command to resume from the last "
            "checkpoint."
        )
    in_a_row = _trailing(losses, lambda loss: loss.start == last.start)
    if in_a_row > max_failures:
        from_where = f"{last.start:,} samples" if last.start is not None else "its start"
        return (
            f"Workers were lost {in_a_row} times without a checkpoint between, each time after a start from "
            f"{from_where} (the last time {last.cause}), and ray.max_failures allows {max_failures}; look at their "
            "logs, then run the same command to resume."
        )
    return None


def _trailing(losses: Sequence[WorkerLoss], fits: Callable[[WorkerLoss], bool]) -> int:
    """The number of losses at the end of the sequence that fit."""
    count = 0
    for loss in reversed(losses):
        if not fits(loss):
            break
        count += 1
    return count
