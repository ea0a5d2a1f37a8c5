"""A lease in the storage of a run, so that one process at a time writes the run.

    URL/NAME/owner/000003.json   the third claim: process, user, machine and time; it never changes
    URL/NAME/owner/000003.beat   a counter that the owner increments every two seconds; `released` after it has left

The process of the claim with the highest number owns the run. A claim is a conditional write, so only one of several
processes gets the next number. Before every irreversible write the owner checks that its claim still exists and still
has the highest number. So an owner that another process took for dead finds out, and writes nothing more.

Clocks of different machines are not compared. A process that wants the run observes the counter for the length of a
lease by its own clock. It does not wait if the owner has left, if the process of the owner is dead on this machine, or
if the owner is an earlier attempt of the same launch.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from pydantic import ValidationError

from ebmscale.errors import LostRunError, NotFoundError, StorageError
from ebmscale.storage import Storage
from ebmscale.training.claim import (
    BEAT_S,
    LEASE_S,
    PATIENCE_S,
    BeatWatch,
    Claim,
    ClaimVerdict,
    Launch,
    OwnerSeen,
    held,
    judge_owner,
    launch_of_torchrun,
    replaces,
)

log = logging.getLogger(__name__)

FOLDER = "owner"
LOOK_S = 0.25
RELEASED = b"released"


class Lease:
    """The right to write a folder. One process holds it, for itself or for its whole group.

    Args:
        storage: the folder.
        launch: the launch of this process; None means that of torchrun, if there is one.
        what: the kind of folder, for messages.

    Attributes:
        lost: the error, once another process has taken over or the folder was deleted; None before.
    """

    def __init__(self, storage: Storage, launch: Launch | None = None, what: str = "run"):
        self.storage = storage
        self.claim = Claim.of_this_process(storage.url, launch or launch_of_torchrun())
        self.lost: LostRunError | None = None
        self._what = what
        self._number = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, check: Callable[[], None] = lambda: None) -> None:
        """Waits until the folder has no other owner, for at most some seconds, and then owns it.

        Args:
            check: called while it waits. An exception that it raises ends the wait.

        Raises:
            LostRunError: another process owns the folder and is alive.
            StorageError: the storage fails.
        """
        held.add(self.claim.id)
        try:
            self._begin(self._wait(check))
        except BaseException:
            held.discard(self.claim.id)
            raise

    def join(self, number: int, claim: Claim) -> None:
        """Uses the claim of another process of the same group, so that `check` works in this process too."""
        self._number, self.claim = number, claim

    @property
    def ticket(self) -> tuple[int, Claim]:
        """The arguments of `join`."""
        return self._number, self.claim

    def check(self) -> None:
        """Checks that this process still owns the folder. Call it before every irreversible write.

        Raises:
            LostRunError: the process no longer owns the folder.
            StorageError: the storage cannot be read, so the owner is unknown.
        """
        self._check(self.storage)

    def release(self) -> None:
        """Gives the folder up, so that the next process can take it at once."""
        self._over.set()
        if self._thread is None:
            return
        self._thread.join(timeout=2 * BEAT_S)
        self._thread = None
        storage = replace(self.storage, retries=0)
        with suppress(StorageError):  # then the next process finds this one dead, or waits
            self._check(storage)
            storage.publish(_beat_file(self._number), RELEASED, make_folders=False)
        held.discard(self.claim.id)
        self.lost = self.lost or LostRunError(f"This process has left the {self._what} {self.storage.url}.")

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _wait(self, check: Callable[[], None]) -> int:
        """Waits for the folder and claims it. Returns the number of the claim."""
        number, told, watching = _highest(self.storage), False, BeatWatch(time.monotonic())
        while True:
            if number == 0 or self._verdict(number, watching) == "take":
                self.storage.create(_claim_file(number + 1), self.claim.model_dump_json().encode())
                if _read(self.storage, number + 1) == self.claim:
                    return number + 1
            elif not told:
                told = True
                owner = _read(self.storage, number) or "a process that left no readable record"
                log.warning(
                    "the %s %s is written by %s; waiting up to %.0f s to see whether that process is alive",
                    self._what, self.storage.url, owner, LEASE_S + PATIENCE_S,
                )  # fmt: skip
            newest = _highest(self.storage, number)
            if newest != number:
                number, watching = newest, BeatWatch(time.monotonic())
                continue
            check()
            time.sleep(LOOK_S)

    def _begin(self, number: int) -> None:
        self._number = number
        with suppress(StorageError):  # files of the previous owner
            self.storage.sweep(FOLDER)
            self.storage.delete(_beat_file(number - 1))
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        storage, count = replace(self.storage, retries=0), 0
        while True:
            try:
                self._check(storage)
                storage.publish(_beat_file(self._number), str(count).encode(), make_folders=False)
            except LostRunError:
                return
            except StorageError as error:  # the next check notices if another process took over
                log.debug("the counter could not be written: %s", error)
            count += 1
            if self._over.wait(BEAT_S):
                return

    def _check(self, storage: Storage) -> None:
        if self.lost is None:
            self.lost = self._loss(storage)
        if self.lost is not None:
            raise self.lost

    def _loss(self, storage: Storage) -> LostRunError | None:
        mine = _read(storage, self._number)
        if mine != self.claim:
            return LostRunError(
                f"The {self._what} {self.storage.url} was deleted while this process was writing it; it stops "
                "and writes nothing more. Run the same command to begin again."
            )
        newest = _highest(storage, self._number)
        if newest == self._number:
            return None
        return LostRunError(
            f"The {self._what} {self.storage.url} was taken over by {_read(storage, newest) or 'another process'}; "
            "this process stops and writes nothing more."
        )

    def _verdict(self, number: int, watching: BeatWatch) -> ClaimVerdict:
        """Whether to take the folder from the owner with this number, or to wait.

        Raises:
            LostRunError: the owner is alive.
        """
        owner = _read(self.storage, number)
        beat = _content(self.storage, _beat_file(number))
        watched_s, still_s = watching.look(beat, time.monotonic())
        replaced = owner is not None and replaces(self.claim.launch, owner.launch)
        alive = owner.is_alive(self.storage.url) if owner is not None else None
        verdict = judge_owner(OwnerSeen(beat == RELEASED, replaced, alive, watched_s, still_s))
        if verdict == "refuse":
            raise LostRunError(
                f"The {self._what} {self.storage.url} is being written by {owner or 'another process'}; wait until "
                f"it has ended, or stop it: a {self._what} has one writer at a time."
            )
        return verdict


def _highest(storage: Storage, known: int = 0) -> int:
    """The highest number of a claim, 0 if there is none. The search starts at `known`, or at the highest listed one."""
    if known == 0:
        names = (name.partition(".")[0] for name in storage.list(FOLDER))
        known = max((int(name) for name in names if name.isdigit()), default=0)
    while _content(storage, _claim_file(known + 1)) is not None:
        known += 1
    return known


def _read(storage: Storage, number: int) -> Claim | None:
    """The claim with this number; None if it does not exist or is damaged."""
    try:
        return Claim.model_validate_json(_content(storage, _claim_file(number)) or b"")
    except ValidationError:
        return None


def _content(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.read_bytes(path)
    except NotFoundError:
        return None


def _claim_file(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def _beat_file(number: int) -> str:
    return f"{FOLDER}/{number:06d}.beat"
