"""What to make of lost workers: go on, or stop because it is no longer bad luck. A decision over plain values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

REPEATS = 3  # crashes at the very same batch that are no accident
KEYS_SHOWN = 8


@dataclass(frozen=True)
class Loss:
    """One time that workers were lost, and with them the work since the last checkpoint.

    Attributes:
        cause: in words, such as "rank 1 on 10.0.0.2 was killed".
        start: samples_seen that the lost workers had started from, None if they never got so far.
        position: samples_seen at the batch in which it happened, None if there was none.
        exact: whether `position` is known for certain; otherwise they may have got a little further.
        of_node: whether a whole machine went, which no sample can cause.
        keys: the samples of that batch on the ranks that were lost first.
    """

    cause: str
    start: int | None = None
    position: int | None = None
    exact: bool = False
    of_node: bool = False
    keys: tuple[str, ...] = ()


def reason_to_stop(losses: Sequence[Loss], max_failures: int) -> str | None:
    """Why not to go on after the last of these losses, in a sentence; None to go on.

    Args:
        losses: all of the run so far, the latest last.
        max_failures: losses in a row, with no new checkpoint between them, that are put up with.
    """
    last = losses[-1]
    crashes = _trailing(losses, lambda loss: not loss.of_node and loss.exact and loss.position == last.position)
    if last.position is not None and crashes >= REPEATS:
        shown = ", ".join(last.keys[:KEYS_SHOWN])
        more = f" and {len(last.keys) - KEYS_SHOWN} more" if len(last.keys) > KEYS_SHOWN else ""
        return (
            f"The run crashed {crashes} times at the same place, in the batch after {last.position:,} samples "
            f"({last.cause}); look at its samples {shown}{more}, then run the same command to go on from the last "
            "checkpoint."
        )
    in_a_row = _trailing(losses, lambda loss: loss.start == last.start)
    if in_a_row > max_failures:
        from_where = f"{last.start:,} samples" if last.start is not None else "its start"
        return (
            f"Workers were lost {in_a_row} times without a checkpoint between, each time after going on from "
            f"{from_where} (the last time {last.cause}), and ray.max_failures allows {max_failures}; look at their "
            "logs, then run the same command to go on."
        )
    return None


def _trailing(losses: Sequence[Loss], fits: Callable[[Loss], bool]) -> int:
    """How many losses at the end fit."""
    count = 0
    for loss in reversed(losses):
        if not fits(loss):
            break
        count += 1
    return count
