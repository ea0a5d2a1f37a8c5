"""Who owns a folder, and when another process may have it: the record, and the decision as a pure function."""

import getpass
import hashlib
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

BEAT_S = 2.0
LEASE_S = 10.0
"""An owner whose counter stands still for so long is taken for dead."""
PATIENCE_S = 5.0
"""How long a living owner is given to leave before its folder is refused."""

held: set[str] = set()
"""Ids of the claims that this process holds."""


class Launch(NamedTuple):
    """What a launcher started: its token, and which attempt this is. A later attempt replaces an earlier one."""

    token: str
    attempt: int


class Claim(BaseModel):
    """Who owns a run, as the record says.

    Attributes:
        id: unique.
        host: name of the machine.
        machine: its boot and the processes' namespace; empty where the system does not tell.
        pid: of the process.
        started: when the process started, in ticks since the boot.
        user: its name.
        since: when the claim was made, for people.
        place: a digest of the folder's address, since a folder that is copied takes its record along.
        launch: what started the process, where that is known.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    host: str
    machine: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: str
    user: str
    since: str
    place: str
    launch: Launch | None = None

    @classmethod
    def of_this_process(cls, url: str, launch: Launch | None) -> "Claim":
        """A new one of the folder at an address."""
        return cls(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_start_of(os.getpid()) or "",
            user=_user(),
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            place=_digest(url),
            launch=launch,
        )

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"

    def is_alive(self, url: str) -> bool | None:
        """Whether its process lives; None where this machine cannot tell, or the folder was copied to `url`."""
        here = (socket.gethostname(), _machine(), _digest(url))
        if not self.machine or (self.host, self.machine, self.place) != here:
            return None
        if self.pid == os.getpid():
            return self.id in held
        found = _start_of(self.pid)
        if found is not None:
            return found == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return None
        return None if Path(f"/proc/{self.pid}").exists() else False


ClaimVerdict = Literal["take", "wait", "refuse"]


@dataclass(frozen=True)
class OwnerSeen:
    """What a process that wants a run knows of its owner. Seconds are of its own clock.

    Attributes:
        released: whether the owner has left.
        replaced: whether the owner is an earlier attempt of the same launch.
        alive: whether its process lives; None where that cannot be told from here.
        watched_s: since when the owner is watched.
        still_s: since when its counter stands still, at most `watched_s`.
    """

    released: bool
    replaced: bool
    alive: bool | None
    watched_s: float
    still_s: float


def judge_owner(seen: OwnerSeen) -> ClaimVerdict:
    """Whether the run may be taken, is refused, or the owner has to be watched longer: a pure function."""
    if seen.released or seen.replaced or seen.alive is False:
        return "take"
    if seen.alive is None and seen.still_s >= LEASE_S:
        return "take"
    moved_late = seen.watched_s - seen.still_s >= PATIENCE_S
    if moved_late or (seen.alive and seen.watched_s >= PATIENCE_S):
        return "refuse"
    return "wait"


class BeatWatch:
    """How long an owner's counter stands still.

    Between two looks no more than `BEAT_S` counts: where the storage could not be read for longer, the owner could
    perhaps not write either.

    Args:
        now: seconds of the observer's clock.
    """

    def __init__(self, now: float):
        self._began = self._moved = self._looked = now
        self._beat: bytes | None = None
        self._seen = False

    def look(self, beat: bytes | None, now: float) -> tuple[float, float]:
        """Takes the counter as it is now; `watched_s` and `still_s` of a `OwnerSeen`."""
        if not self._seen:
            self._seen, self._beat, self._began, self._moved = True, beat, now, now
        elif beat != self._beat:
            self._beat, self._moved = beat, now
        else:
            uncounted = max(0.0, now - self._looked - BEAT_S)
            self._began += uncounted
            self._moved += uncounted
        self._looked = now
        return now - self._began, now - self._moved


def launch_of_torchrun() -> Launch | None:
    """The launch that this process belongs to, where torchrun gave it a name of its own."""
    token = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return None if token in ("", "none") or not attempt.isdigit() else Launch(f"torchrun {token}", int(attempt))


def replaces(mine: Launch | None, owner: Launch | None) -> bool:
    """Whether the owner is an earlier attempt of the same launch."""
    return mine is not None and owner is not None and mine.token == owner.token and mine.attempt > owner.attempt


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have
        return str(os.getuid())


def _machine() -> str:
    """Names this boot of this machine, and the namespace in which its pids count; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, in ticks since the boot; `ended` of a zombie, None of none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]
