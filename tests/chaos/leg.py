"""One start of the program, on one process or on several under torchrun, seen from outside: its traces, its pids."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("traced.py")
POLL_S = 0.02
TRACE = "CHAOS_TRACE"
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class Topology:
    """How many processes train, and with which engine; `zero_stage` None is the plain engine."""

    size: int = 1
    zero_stage: int | None = None

    @property
    def overrides(self) -> list[str]:
        """As the program takes them."""
        if self.zero_stage is None:
            return ["engine=plain"]
        return ["engine=deepspeed", f"deepspeed.zero_stage={self.zero_stage}"]

    def __str__(self) -> str:
        return f"{self.size} x {'plain' if self.zero_stage is None else f'ZeRO {self.zero_stage}'}"


@dataclass(frozen=True)
class TracedBatch:
    """The rows of a global batch that a rank trained: their numbers in the run's order of samples, and their keys."""

    rank: int
    size: int
    start: int
    end: int
    numbers: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass
class _Journal:
    """What has been read of one process's trace."""

    path: Path
    offset: int = 0
    batches: list[TracedBatch] = field(default_factory=list)
    code: int | None = None

    def read_on(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in map(json.loads, whole.splitlines()):
            if "exit" in line:
                self.code = line["exit"]
            else:
                self.batches.append(_batch_of(line))


class Leg:
    """The processes of one start of the training command.

    Args:
        folder: for the log and the traces; made by this.
        arguments: of the program, after `train`.
        topology: how many processes, and their engine.
        environment: what is added to this process's own.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], topology: Topology, environment: Mapping[str, str] | None = None
    ):
        folder.mkdir(parents=True)
        self.folder, self.topology = folder, topology
        self._journals: dict[str, _Journal] = {}
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={topology.size}"]
        command = [sys.executable, *(several if topology.size > 1 else []), str(PROGRAM), "train", *arguments]
        inherited = {name: value for name, value in os.environ.items() if name not in OF_TORCHRUN}
        with (folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *topology.overrides],
                env=inherited | {"OMP_NUM_THREADS": "1", TRACE: str(folder)} | dict(environment or {}),
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def is_running(self) -> bool:
        """Whether the command that was started is still there."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the command; torchrun has its own codes."""
        return self._process.poll()

    def rank_codes(self) -> dict[int, int]:
        """The exit codes of the ranks that ended by themselves."""
        self._read_on()
        return {_rank(j.path): j.code for j in self._journals.values() if j.code is not None}

    def batches(self) -> list[TracedBatch]:
        """All that was trained so far, rank by rank."""
        self._read_on()
        return [batch for name in sorted(self._journals) for batch in self._journals[name].batches]

    def first(self) -> int | None:
        """Where training began; None before the first batch."""
        return min((batch.start for batch in self.batches()), default=None)

    def position(self) -> int:
        """The end of the last batch that any rank has trained; 0 before the first one."""
        self._read_on()
        return max((journal.batches[-1].end for journal in self._journals.values() if journal.batches), default=0)

    def ranks(self) -> dict[int, int]:
        """Rank and pid of the training processes that have begun and live."""
        self._read_on()
        found = {_rank(journal.path): int(journal.path.stem.partition("-")[2]) for journal in self._journals.values()}
        alive = self.members()
        return {rank: pid for rank, pid in sorted(found.items()) if pid in alive}

    def members(self) -> list[int]:
        """The pids of all living processes of this leg, known by what their environment holds."""
        mark, found = f"{TRACE}={self.folder}\0".encode(), []
        for place in Path("/proc").iterdir():
            try:
                if place.name.isdigit() and mark in (place / "environ").read_bytes() + b"\0" and not _is_dead(place):
                    found.append(int(place.name))
            except OSError:  # it has ended meanwhile, or is somebody else's
                continue
        return found

    def wait_until(self, happened: Callable[[], Any], timeout_s: float) -> bool:
        """Waits for something while the leg runs; whether it happened."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            if not self.is_running or time.monotonic() > deadline:
                return bool(happened())
            time.sleep(POLL_S)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Waits for the end of all processes; whether they ended."""
        deadline = time.monotonic() + timeout_s
        while self.is_running or self.members():
            if time.monotonic() > deadline:
                return False
            time.sleep(5 * POLL_S)
        return True

    def slow_down(self, slow: bool) -> None:
        """Lets every batch take longer, or no longer so."""
        mark = self.folder / "slow"
        if slow:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

    def send(self, number: int, pids: Sequence[int]) -> None:
        """Sends a signal to some of the processes."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """Kills all processes at once, and waits until they are gone."""
        for _ in range(100):  # a process may be starting another one
            self.send(signal.SIGKILL, self.members())
            if self.wait(0.1):
                return
        raise TimeoutError(f"the processes of {self.folder} outlive SIGKILL")

    def log_tail(self, num_lines: int = 12) -> str:
        """The last lines of what the program printed."""
        return "\n".join((self.folder / "log.txt").read_text(errors="replace").splitlines()[-num_lines:])

    def _read_on(self) -> None:
        for path in self.folder.glob("*.jsonl"):
            self._journals.setdefault(path.name, _Journal(path)).read_on()


def _rank(path: Path) -> int:
    return int(path.stem.partition("-")[0])


def _is_dead(place: Path) -> bool:
    return (place / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _batch_of(line: dict[str, Any]) -> TracedBatch:
    numbers = tuple(line["start"] + row for row in line["rows"])
    return TracedBatch(line["rank"], line["size"], line["start"], line["end"], numbers, tuple(line["keys"]))
