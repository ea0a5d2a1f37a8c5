"""The output of a long job in parts: a folder with one file a part, each written as a whole, and a record of the job.

    FOLDER/_job.json             what the job is; the same command continues it, another one is refused
    FOLDER/part-000000.parquet   one file a part

A part is done when its file is there.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ebmscale.errors import ConfigError
from ebmscale.storage import Storage
from ebmscale.stored import read_document

JOB_FILE = "_job.json"  # readers of a folder of Parquet leave out names that begin so
MOST_PARTS = 1024


def part_size(num: int, most_parts: int = MOST_PARTS) -> int:
    """How many of `num` pieces make a part, so that there are at most that many parts."""
    return max(-(-num // most_parts), 1)


@dataclass(frozen=True)
class PartFiles:
    """The files of the parts of a job; a value that can be sent to another process.

    Attributes:
        storage: the folder.
        ending: of the files' names, such as `.parquet`.
    """

    storage: Storage
    ending: str

    def name(self, part: int) -> str:
        """The file of a part."""
        return f"part-{part:06d}{self.ending}"

    def begin(self, about: Mapping[str, Any]) -> None:
        """Writes the record of the job, or compares it with the one that is there.

        Args:
            about: what the job is: everything that its parts depend on, as JSON.

        Raises:
            ConfigError: the folder has parts of another job.
        """
        storage, wanted = self.storage, json.loads(json.dumps(about))
        if not storage.exists(JOB_FILE):
            storage.publish(JOB_FILE, json.dumps(wanted, indent=1).encode())
            return
        there = read_document(storage, JOB_FILE, dict[str, Any])
        changed = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
        if changed:
            before, now = there.get(changed[0]), wanted.get(changed[0])
            raise ConfigError(
                f"{storage.url} has parts of another job: its {changed[0]} is {before}, now it is {now}; delete that "
                "folder, or give another place."
            )

    def done(self) -> set[int]:
        """The parts that are done."""
        found = (re.fullmatch(rf"part-(\d+){re.escape(self.ending)}", name) for name in self.storage.list(""))
        return {int(one[1]) for one in found if one}

    def write(self, part: int, data: bytes) -> None:
        """Writes the file of a part as a whole."""
        self.storage.publish(self.name(part), data)

    def read(self, part: int) -> bytes:
        """The file of a part."""
        return self.storage.read_bytes(self.name(part))

    def remove(self) -> None:
        """Deletes the folder's files; the record goes last, so that an interruption leaves a job that continues."""
        storage = self.storage
        for part in sorted(self.done()):
            storage.delete(self.name(part))
        if storage.exists(JOB_FILE):
            storage.delete(JOB_FILE)
        folder = storage.local_path()
        if folder is not None:
            with suppress(OSError):  # something else is in it
                folder.rmdir()
