"""The checkpoints of a run: which there are, the newest valid one, and a table of all."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ebmscale.errors import DamagedError, NotFoundError
from ebmscale.model.checkpoint import FOLDER, MANIFEST_FILE, SavedCheckpoint, position_of
from ebmscale.storage import Storage

log = logging.getLogger(__name__)

T = TypeVar("T")

NAMES_FILE = "checkpoints.json"
_NAME = re.compile(r"\d{12}-[0-9a-f]{12}")


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint in the table of `inspect`. `problem` is None if the checkpoint is valid."""

    name: str
    samples_seen: int
    stage: int | None
    num_bytes: int
    problem: str | None


class CheckpointContents(BaseModel):
    """What the policy of `CheckpointBlock` needs of a checkpoint: its metrics, and the files of its frozen ratios."""

    metrics: dict[str, float]
    ratio_files: list[str]


class CheckpointNames(BaseModel):
    """The content of `NAMES_FILE`.

    Attributes:
        names: of checkpoints that were written or that were about to be written.
        contents: of complete ones, as they were when the last one was written.
    """

    names: set[str] = set()
    contents: dict[str, CheckpointContents] = {}


class CheckpointReader:
    """The checkpoints of one run. Every call lists the storage anew; no listing is cached.

    Args:
        storage: the run's storage.
    """

    def __init__(self, storage: Storage):
        self.storage = storage
        self.damaged: set[str] = set()

    def names(self) -> list[str]:
        """The names of all checkpoint folders, complete or not, newest first."""
        listed = {name for name in self.storage.list(FOLDER) if _NAME.fullmatch(name)}
        unlisted = self._unlisted() - listed
        return sorted(listed | {name for name in unlisted if self._is_finished(name)}, reverse=True)

    def finished(self) -> list[str]:
        """The names of the folders that have a manifest, valid or not, newest first."""
        return [name for name in self.names() if self._is_finished(name)]

    def candidates(self) -> list[str]:
        """The same as `finished`, with a warning for every folder without a manifest."""
        finished = []
        for name in self.names():
            if self._is_finished(name):
                finished.append(name)
            else:
                log.warning("skipping checkpoint %s: it was never finished", name)
        return finished

    def mark_damaged(self, name: str, problem: str) -> None:
        """Warns of a damaged checkpoint, and marks it. The next save deletes it."""
        self.damaged.add(name)
        log.warning("skipping checkpoint %s: %s", name, problem)

    def open(self, name: str) -> SavedCheckpoint:
        """A complete checkpoint by its name. Raises as `SavedCheckpoint`."""
        return SavedCheckpoint(self.storage, name)

    def newest(self, use: Callable[[SavedCheckpoint], T]) -> T | None:
        """The result of `use` for the newest checkpoint for which it raises no `DamagedError`, or None."""
        for name in self.candidates():
            try:
                return use(self.open(name))
            except DamagedError as error:
                self.mark_damaged(name, str(error))
        return None

    def describe(self, check: Callable[[SavedCheckpoint], object] = SavedCheckpoint.verify) -> list[CheckpointInfo]:
        """Every checkpoint, oldest first, with its stage, its size and what is wrong with it.

        Args:
            check: raises a `DamagedError` if a checkpoint is not valid. The default reads and verifies every file.
        """
        infos = []
        for name in reversed(self.names()):
            stage, num_bytes, problem = None, 0, None if self._is_finished(name) else "it was never finished"
            if problem is None:
                try:
                    saved = self.open(name)
                    stage, num_bytes = saved.manifest.stage, saved.num_bytes
                    check(saved)
                except DamagedError as error:
                    problem = str(error)
            infos.append(CheckpointInfo(name, position_of(name), stage, num_bytes, problem))
        return infos

    def _unlisted(self) -> set[str]:
        """Names of checkpoints that the storage may not list yet."""
        return self._noted()

    def _noted(self) -> set[str]:
        return {name for name in self._read_notes().names if _NAME.fullmatch(name)}

    def _read_notes(self) -> CheckpointNames:
        try:
            return CheckpointNames.model_validate_json(self.storage.read_bytes(NAMES_FILE))
        except (NotFoundError, ValidationError):  # a run of an earlier version, or damaged: use the listing alone
            return CheckpointNames()

    def _is_finished(self, name: str) -> bool:
        return self.storage.exists(f"{FOLDER}/{name}/{MANIFEST_FILE}")
