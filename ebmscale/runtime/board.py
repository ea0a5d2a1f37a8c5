"""The board: workers of a run report their progress to it, and learn from it when they have to stop.

It lives in one process beside the driver. Each worker sends a `Beat` about once a second and receives a `WorkerOrder`.
The driver reads the lines to print, and requests stops. Ray Train's controller reports dead workers to `lost`. The
board uses plain values and a clock that is an argument; it does not use Ray.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ebmscale.model.timed_parts import PARTS
from ebmscale.runtime.lost_workers import WorkerLoss, reason_to_stop

SILENT_S = 15.0  # after this time without a beat, a worker counts as stopped or disconnected
RESTART_REASONS = ("preemption", "resize")
"""Reasons to save and exit after which the run continues with other workers."""

SETUP = "set-up"
_AFTER_UPDATE = ("evidence", "checkpoint")  # these parts follow the batch that ends at `samples_seen`
_ORDER = {
    name: place
    for place, name in enumerate((SETUP, *_AFTER_UPDATE, *(part for part in PARTS if part not in _AFTER_UPDATE)))
}


@dataclass(frozen=True)
class Beat:
    """The state of a worker, as it reports it.

    Attributes:
        attempt: name of the group of workers that started together.
        rank: of this worker.
        size: number of workers in its world.
        where: its machine and process.
        start: samples_seen at which it started, None until the run is open.
        samples_seen: so far.
        part: the part of the update that it works on.
        lines: for the driver to print.
        preempted: whether the cluster is about to take away a machine of this group.
    """

    attempt: str
    rank: int
    size: int
    where: str
    start: int | None
    samples_seen: int
    part: str
    lines: tuple[str, ...] = ()
    preempted: bool = False


class WorkerOrder(NamedTuple):
    """The board's answer to a beat.

    Attributes:
        stop: why the worker has to save and exit; None to continue.
        report_batches_until: samples_seen; the worker reports each batch until some seconds after it has passed this.
    """

    stop: str | None
    report_batches_until: int


class BoardState(NamedTuple):
    """What the driver reads from the board.

    Attributes:
        lines: not yet read.
        num_workers: in the current group, including those that have saved and exited.
        idle_s: seconds since the last message of any worker.
    """

    lines: list[str]
    num_workers: int
    idle_s: float


class Failure(NamedTuple):
    """How one worker failed: its process `died`, its machine is `gone`, it `raised` an error, or was `preempted`."""

    kind: Literal["died", "gone", "raised", "preempted"]
    text: str


@dataclass
class _Member:
    beat: Beat
    heard: float
    left: bool = False
    batch: tuple[int, tuple[str, ...]] | None = None  # the last one that it reported before it trained on it


@dataclass
class _Group:
    """Workers that started together."""

    attempt: str
    members: dict[int, _Member] = field(default_factory=dict)


class Board:
    """See the module.

    Args:
        max_failures: the number of failures in a row without a new checkpoint that the run accepts.
        clock: returns monotonic seconds.
    """

    def __init__(self, max_failures: int, clock: Callable[[], float] = time.monotonic):
        self._max_failures = max_failures
        self._clock = clock
        self._group = _Group("")
        self._over: set[str] = set()  # attempts that ended
        self._losses: list[WorkerLoss] = []
        self._last_failures: list[tuple[int, Failure]] = []
        self._lines: list[str] = []
        self._stop: str | None = None
        self._may_start = False
        self._report_batches_until = -1
        self._heard = clock()
        self._token = uuid.uuid4().hex
        self._numbers: dict[str, int] = {}

    def join(self, attempt: str) -> tuple[str, int]:
        """Returns the board's name, which all attempts share, and the number of this attempt (1 called first)."""
        return self._token, self._numbers.setdefault(attempt, len(self._numbers) + 1)

    def beat(self, beat: Beat) -> WorkerOrder:
        """Records the state of a worker, and returns its order."""
        self._heard = self._clock()
        self._lines.extend(beat.lines)
        if beat.attempt in self._over:
            return WorkerOrder(self._stop, self._report_batches_until)
        if beat.attempt != self._group.attempt:
            self._begin(beat.attempt)
        member = self._group.members.setdefault(beat.rank, _Member(beat, self._heard))
        member.beat, member.heard = beat, self._heard
        if beat.preempted and self._stop is None:
            self._stop = "preemption"
            self._lines.append("a machine of this run is about to be taken away: the run saves")
        return WorkerOrder(self._stop, self._report_batches_until)

    def batch(self, attempt: str, rank: int, start: int, keys: tuple[str, ...] | None) -> None:
        """Records the batch that a worker is about to train on; keys None means that it stops reporting batches."""
        member = self._group.members.get(rank)
        if attempt == self._group.attempt and member is not None:
            member.batch = (start, keys) if keys is not None else None

    def request(self, reason: str) -> None:
        """Asks all workers to save and exit. A person's request replaces one of the cluster."""
        if self._stop is None or self._stop in RESTART_REASONS:
            self._stop = reason

    def reason(self) -> str | None:
        """Why workers have to stop; None if they do not."""
        return self._stop

    def leave(self, attempt: str, rank: int) -> None:
        """Records that a worker has saved and exited."""
        if attempt == self._group.attempt and rank in self._group.members:
            self._group.members[rank].left = True

    def allow_start(self) -> None:
        """Lets workers start, after all checks have passed."""
        self._may_start = True

    def may_start(self) -> bool:
        """Whether workers may start."""
        return self._may_start

    def all_left(self) -> bool:
        """Whether all workers have saved and exited."""
        return all(member.left for member in self._group.members.values())

    def end_group(self) -> None:
        """Forgets the current workers, which are gone or about to exit; others will start."""
        self._over.add(self._group.attempt)
        self._group = _Group("")
        if self._stop in RESTART_REASONS:
            self._stop = None

    def restart(self, reason: str) -> str | None:
        """Records why Ray Train ended; returns why the run has to stop, or None to start new workers."""
        self._last_failures = []
        if reason not in RESTART_REASONS:
            return self.lost({0: Failure("raised", reason)})
        self._lines.append(f"saved because of {reason}; the run continues with other workers")
        self.end_group()
        return None

    def overdue(self, attempt: str, rank: int, seconds: float, stacks: str) -> bool:
        """Whether a worker over its time limit is the one that hangs and must exit; if so, prints its stacks.

        The other workers wait for it in a collective operation, so they exceed the limit as well.
        """
        members = self._group.members
        if attempt != self._group.attempt or rank not in members:
            return False
        now, beat = self._clock(), members[rank].beat
        silent = [m for r, m in members.items() if r != rank and not m.left and now - m.heard > SILENT_S]
        if silent:
            names = ", ".join(f"rank {m.beat.rank} on {m.beat.where}" for m in silent)
            self._lines.append(
                f"{names} has stopped answering; rank {rank} waits for it in {beat.part} and is replaced"
            )
            return True
        first = min((m.beat for m in members.values() if not m.left), key=_progress)
        if first.rank != rank:
            return False
        self._lines.append(
            f"rank {rank} on {beat.where} hangs: {seconds:.0f} s in {beat.part} after {beat.samples_seen:,} samples; "
            f"it is replaced. Its threads:\n{stacks}"
        )
        return True

    def lost(self, failures: Mapping[int, Failure]) -> str | None:
        """Records how workers of the current group failed; returns why the run has to stop, or None to continue."""
        ordered = sorted(failures.items())
        if ordered == self._last_failures:  # the same failures again: no worker has started since
            return None
        loss = self._loss(failures)
        preempted = any(failure.kind == "preempted" for failure in failures.values())
        if loss.position is not None:
            self._report_batches_until = max(self._report_batches_until, loss.position)
        self._lines.append(f"lost: {loss.cause}")
        self.end_group()
        self._last_failures = ordered
        sentence = None
        if not preempted:
            self._losses.append(loss)
            sentence = reason_to_stop(self._losses, self._max_failures)
        if sentence is None:
            self._lines.append("the run continues from the last checkpoint with other workers")
        return sentence

    def read(self) -> BoardState:
        """Returns the lines since the last call, and the state of the workers."""
        lines, self._lines = self._lines, []
        return BoardState(lines, len(self._group.members), self._clock() - self._heard)

    def _begin(self, attempt: str) -> None:
        if self._group.attempt:
            self.end_group()
        self._group = _Group(attempt)
        self._last_failures = []

    def _loss(self, failures: Mapping[int, Failure]) -> WorkerLoss:
        members = self._group.members
        first = {r: f for r, f in failures.items() if f.kind in ("died", "gone")} or dict(failures)
        where = {r: m.beat.where for r, m in members.items()}
        if not members:
            return WorkerLoss(_describe(first, where))
        known = [members[r] for r in first if r in members] or list(members.values())
        starts = [m.beat.start for m in members.values() if m.beat.start is not None]
        start = min(starts) if starts else None
        batches = [m.batch for m in known if m.batch is not None]
        exact = len(batches) == len(known)
        position = batches[0][0] if exact else max(m.beat.samples_seen for m in known)
        return WorkerLoss(
            cause=_describe(first, where),
            start=start,
            position=position if start is not None else None,
            exact=exact,
            of_node=all(f.kind == "gone" for f in first.values()),
            keys=tuple(key for _, keys in batches for key in keys),
        )


def _progress(beat: Beat) -> tuple[int, int, int]:
    """Orders workers by how far they are."""
    return (-1 if beat.start is None else beat.samples_seen, _ORDER.get(beat.part, len(_ORDER)), beat.rank)


def _describe(failures: Mapping[int, Failure], where: Mapping[int, str]) -> str:
    words = {"died": "died", "gone": "was lost with its machine", "raised": "failed", "preempted": "was preempted"}
    parts = []
    for rank, failure in sorted(failures.items())[:3]:
        place = f" on {where[rank]}" if rank in where else ""
        detail = f" ({failure.text})" if failure.text else ""
        parts.append(f"rank {rank}{place} {words[failure.kind]}{detail}")
    more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
    return "; ".join(parts) + more
