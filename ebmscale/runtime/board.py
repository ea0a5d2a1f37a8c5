"""The board: where the workers of a run tell what they do, and where they are asked to stop.

It lives in one process beside the driver. Each worker sends a `Beat` about once a second and gets an `Order` back;
the driver reads the lines to print, and asks for stops; whoever sees workers die reports it to `lost`. Plain values
and a clock that is handed in: no Ray here.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ebmscale.model.timed_parts import PARTS
from ebmscale.runtime.lost_workers import Loss, reason_to_stop

SILENT_S = 15.0  # without a beat a worker is taken for stopped or cut off
LEAVING = ("preemption", "resize")
"""Reasons to save and leave after which the run goes on with other workers."""

SETUP = "set-up"
_AFTER_UPDATE = ("evidence", "checkpoint")  # these come after the batch whose end is `samples_seen`
_ORDER = {
    name: place
    for place, name in enumerate((SETUP, *_AFTER_UPDATE, *(part for part in PARTS if part not in _AFTER_UPDATE)))
}


@dataclass(frozen=True)
class Beat:
    """What a worker is at.

    Attributes:
        attempt: names the group of workers that was started together.
        rank: of this worker.
        size: of its world.
        where: its machine and process.
        start: samples_seen that it started from, None until it has begun.
        samples_seen: so far.
        part: of the update that it is in.
        lines: to be printed.
        preempted: whether a machine of this group is about to be taken away.
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


class Order(NamedTuple):
    """What a worker is asked: to save and leave for the reason `stop`; to report each batch until a
    while after `careful_until`."""

    stop: str | None
    careful_until: int


class News(NamedTuple):
    """What the driver reads.

    Attributes:
        lines: those not read yet.
        num_workers: in the present group, also those that have saved and left.
        idle_s: seconds since any worker was heard of.
    """

    lines: list[str]
    num_workers: int
    idle_s: float


class Failure(NamedTuple):
    """How one worker failed: `died` with its process, `gone` with its machine, `raised` an error, or `preempted`."""

    kind: Literal["died", "gone", "raised", "preempted"]
    text: str


@dataclass
class _Member:
    beat: Beat
    heard: float
    left: bool = False
    batch: tuple[int, tuple[str, ...]] | None = None  # the batch it said it was about to train


@dataclass
class _Group:
    """Workers that were started together."""

    attempt: str
    members: dict[int, _Member] = field(default_factory=dict)


class Board:
    """See the module.

    Args:
        max_failures: losses in a row, with no new checkpoint between, that are put up with.
        clock: seconds that only grow.
    """

    def __init__(self, max_failures: int, clock: Callable[[], float] = time.monotonic):
        self._max_failures = max_failures
        self._clock = clock
        self._group = _Group("")
        self._over: set[str] = set()  # attempts that ended
        self._losses: list[Loss] = []
        self._told: list[tuple[int, Failure]] = []
        self._lines: list[str] = []
        self._stop: str | None = None
        self._is_clear = False
        self._careful_until = -1
        self._heard = clock()
        self._token = uuid.uuid4().hex
        self._numbers: dict[str, int] = {}

    def join(self, attempt: str) -> tuple[str, int]:
        """A name of all attempts that tell this board, and the number of this one in the order of their first calls."""
        return self._token, self._numbers.setdefault(attempt, len(self._numbers) + 1)

    def beat(self, beat: Beat) -> Order:
        """Takes what a worker says, and tells it what is asked of it."""
        self._heard = self._clock()
        self._lines.extend(beat.lines)
        if beat.attempt in self._over:
            return Order(self._stop, self._careful_until)
        if beat.attempt != self._group.attempt:
            self._begin(beat.attempt)
        member = self._group.members.setdefault(beat.rank, _Member(beat, self._heard))
        member.beat, member.heard = beat, self._heard
        if beat.preempted and self._stop is None:
            self._stop = "preemption"
            self._lines.append("a machine of this run is about to be taken away: saving")
        return Order(self._stop, self._careful_until)

    def batch(self, attempt: str, rank: int, start: int, keys: tuple[str, ...] | None) -> None:
        """Takes the batch that a worker is about to train; without keys, the worker will report batches no more."""
        member = self._group.members.get(rank)
        if attempt == self._group.attempt and member is not None:
            member.batch = (start, keys) if keys is not None else None

    def request(self, reason: str) -> None:
        """Asks all workers to save and leave. What a person asks goes before what the cluster wants."""
        if self._stop is None or self._stop in LEAVING:
            self._stop = reason

    def reason(self) -> str | None:
        """Why workers are asked to stop, if they are."""
        return self._stop

    def leave(self, attempt: str, rank: int) -> None:
        """Takes note that a worker has saved and left."""
        if attempt == self._group.attempt and rank in self._group.members:
            self._group.members[rank].left = True

    def clear(self) -> None:
        """Every check is done: workers may start."""
        self._is_clear = True

    def is_clear(self) -> bool:
        """Whether workers may start."""
        return self._is_clear

    def all_left(self) -> bool:
        """Whether no worker is at work any more."""
        return all(member.left for member in self._group.members.values())

    def end_group(self) -> None:
        """The present workers are gone or about to be; others will be started."""
        self._over.add(self._group.attempt)
        self._group = _Group("")
        if self._stop in LEAVING:
            self._stop = None

    def restart(self, reason: str) -> str | None:
        """Ray Train gave up or let go of its workers for this reason; says why the run should stop, or None."""
        self._told = []
        if reason not in LEAVING:
            return self.lost({0: Failure("raised", reason)})
        self._lines.append(f"saved because of {reason}; going on with other workers")
        self.end_group()
        return None

    def overdue(self, attempt: str, rank: int, seconds: float, stacks: str) -> bool:
        """Whether a worker that exceeded its time limit is the one that hangs, and must go; writes its stacks down.

        The others wait for it in a collective operation, and only look as if they hung.
        """
        members = self._group.members
        if attempt != self._group.attempt or rank not in members:
            return False
        now, beat = self._clock(), members[rank].beat
        silent = [m for r, m in members.items() if r != rank and not m.left and now - m.heard > SILENT_S]
        if silent:
            names = ", ".join(f"rank {m.beat.rank} on {m.beat.where}" for m in silent)
            self._lines.append(f"{names} has stopped answering; rank {rank} waits for it in {beat.part}: replacing it")
            return True
        first = min((m.beat for m in members.values() if not m.left), key=_progress)
        if first.rank != rank:
            return False
        self._lines.append(
            f"rank {rank} on {beat.where} hangs: {seconds:.0f} s in {beat.part} after {beat.samples_seen:,} samples; "
            f"replacing it. Its threads:\n{stacks}"
        )
        return True

    def lost(self, failures: Mapping[int, Failure]) -> str | None:
        """Takes how workers of the present group failed; says why the run should stop, or None to go on."""
        told = sorted(failures.items())
        if told == self._told:  # the same workers again: nobody has been started since
            return None
        loss = self._loss(failures)
        preempted = any(failure.kind == "preempted" for failure in failures.values())
        if loss.position is not None:
            self._careful_until = max(self._careful_until, loss.position)
        self._lines.append(f"lost: {loss.cause}")
        self.end_group()
        self._told = told
        sentence = None
        if not preempted:
            self._losses.append(loss)
            sentence = reason_to_stop(self._losses, self._max_failures)
        if sentence is None:
            self._lines.append("going on from the last checkpoint with other workers")
        return sentence

    def read(self) -> News:
        """The lines since the last call, and how the workers are."""
        lines, self._lines = self._lines, []
        return News(lines, len(self._group.members), self._clock() - self._heard)

    def _begin(self, attempt: str) -> None:
        if self._group.attempt:
            self.end_group()
        self._group = _Group(attempt)
        self._told = []

    def _loss(self, failures: Mapping[int, Failure]) -> Loss:
        members = self._group.members
        first = {r: f for r, f in failures.items() if f.kind in ("died", "gone")} or dict(failures)
        where = {r: m.beat.where for r, m in members.items()}
        if not members:
            return Loss(_describe(first, where))
        known = [members[r] for r in first if r in members] or list(members.values())
        starts = [m.beat.start for m in members.values() if m.beat.start is not None]
        start = min(starts) if starts else None
        batches = [m.batch for m in known if m.batch is not None]
        exact = len(batches) == len(known)
        position = batches[0][0] if exact else max(m.beat.samples_seen for m in known)
        return Loss(
            cause=_describe(first, where),
            start=start,
            position=position if start is not None else None,
            exact=exact,
            of_node=all(f.kind == "gone" for f in first.values()),
            keys=tuple(key for _, keys in batches for key in keys),
        )


def _progress(beat: Beat) -> tuple[int, int, int]:
    """How far a worker is, for comparison."""
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
