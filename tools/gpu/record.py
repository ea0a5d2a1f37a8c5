"""The records of all parts: one JSON file, written anew at every figure, so that none is lost when the time ends."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebmscale.machine import describe
from ebmscale.version import commit

FILE = "gpu_check.json"
DONE, RUNNING, FAILED, STOPPED = "done", "running", "failed", "out of time"


@dataclass
class Record:
    """The figures of a part.

    Attributes:
        folder: in which the records are kept.
        part: its name.
        small: whether it is a trial in small sizes on the CPU.
        values: the figures by name.
    """

    folder: Path
    part: str
    small: bool
    values: dict[str, Any] = field(default_factory=dict)
    _begun: float = field(default_factory=time.monotonic)

    def note(self, **values: Any) -> None:
        """Adds figures, and writes the file."""
        self.values |= values
        self.write(RUNNING)
        for name, value in values.items():
            print(f"{self.part}: {name} = {json.dumps(value)}", flush=True)

    def write(self, state: str, reason: str = "") -> None:
        """Writes the file with a state, and the reason of a failure."""
        about = {"part": self.part, "state": state, "small": self.small, "commit": commit(), "machine": describe()}
        seconds = round(time.monotonic() - self._begun, 1)
        publish(self.folder, about | {"seconds": seconds, "reason": reason, "values": self.values})


def publish(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record of a part beside those of the others, in one step: a reader never finds a part of the file."""
    tree = read_all(folder) | {record["part"]: record}
    beside = folder / f"{FILE}.new"
    beside.write_text(json.dumps(tree, indent=1) + "\n")
    beside.replace(folder / FILE)


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The records by part; empty if there are none, or none that can be read."""
    try:
        found = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Setting:
    """What the parts are measured on.

    Attributes:
        small: on the CPU, in small sizes.
        work: folder of packed sets, classifiers and runs.
        data: CIFAR-10: an npz file, or a packed set.
        features: of the Frechet distance; None: a classifier that is trained here.
    """

    small: bool
    work: Path
    data: Path
    features: str | None

    @property
    def device(self) -> str:
        """Where to compute."""
        return "cpu" if self.small else "cuda"


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: of its record.
        about: what it measures.
        limit_s: after so many seconds it is stopped.
        measure: measures, and notes figures as it goes.
    """

    name: str
    about: str
    limit_s: float
    measure: Callable[[Setting, Record], None]
