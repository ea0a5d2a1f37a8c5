"""The record of the owner of a folder, and the decision when another process may take it, as a pure function."""

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
"""An owner whose counter has not changed for this time counts as dead."""
PATIENCE_S = 5.0
"""How long a process waits for a living owner to leave before it gives up."""

held: set[str] = set()
"""Ids of the claims that this process holds."""


class Launch(NamedTuple):
    """The token of a launch, and the number of the attempt. A later attempt replaces an earlier one."""

    token: str
    attempt: int


class Claim(BaseModel):
    """The record of an owner.

    Attributes:
        id: unique.
        host: name of the machine.
        machine: id of its boot and of the namespace of its pids; empty if unknown.
        pid: of the process.
        started: start of the process, in clock ticks since the boot.
        user: name of the user.
        since: time of the claim, as text in UTC.
        place: digest of the address of the folder. It reveals that a folder, with its record, was copied.
        launch: the launch of the process, if known.
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
        """A new claim of the folder at an address."""
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
        """Whether its process is alive; None if that is unknown here, or if the folder was copied to `url`."""
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
    """What a process that wants to write a run has observed of its owner. Seconds are those of its own clock.

    Attributes:
        released: whether the owner has left.
        replaced: whether the owner is an earlier attempt of the same launch.
        alive: whether its process is alive; None if that is unknown here.
        watched_s: seconds since the observation began.
        still_s: seconds since the counter last changed, at most `watched_s`.
    """

    released: bool
    replaced: bool
    alive: bool | None
    watched_s: float
    still_s: float


def judge_owner(seen: OwnerSeen) -> ClaimVerdict:
    """Whether to take the run, to give up, or to observe the owner longer: a pure function."""
    if seen.released or seen.replaced or seen.alive is False:
        return "take"
    if seen.alive is None and seen.still_s >= LEASE_S:
        return "take"
    moved_late = seen.watched_s - seen.still_s >= PATIENCE_S
    if moved_late or (seen.alive and seen.watched_s >= PATIENCE_S):
        return "refuse"
    return "wait"


class BeatWatch:
    """Measures how long the counter of an owner has not changed.

    Between two observations at most `BEAT_S` seconds count. If the storage could not be read for longer, perhaps the
    owner could not write to it either.

    Args:
        now: seconds of the observer's clock.
    """

    def __init__(self, now: float):
        self._began = self._moved = self._looked = now
        self._beat: bytes | None = None
        self._seen = False

    def look(self, beat: bytes | None, now: float) -> tuple[float, float]:
        """Records the counter at the time `now`. Returns `watched_s` and `still_s` of `OwnerSeen`."""
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
    """The launch of this process, if torchrun gave it a run id; None otherwise."""
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
    except (KeyError, OSError):  # an account without a name, as in some containers
        return str(os.getuid())


def _machine() -> str:
    """The id of this boot of this machine and of the namespace of its pids; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Start of a process of this machine in clock ticks since the boot; `ended` for a zombie, None for no process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]
