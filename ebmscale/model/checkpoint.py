"""Checkpoints as they are read: folders that exist only once their manifest, written last, is there."""

import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from ebmscale.errors import DamagedError, NotFoundError, StorageError
from ebmscale.model.pieces import Piece, Span, assemble, parse_part, parse_tensors
from ebmscale.storage import Storage

log = logging.getLogger(__name__)


T = TypeVar("T")


FORMAT_VERSION = 2


FOLDER = "checkpoints"


RATIO_FOLDER = "ratios"


MANIFEST_FILE = "manifest.json"


AT_ONCE = 4  # parts written or read together


_NAME = re.compile(r"\d{12}-[0-9a-f]{12}")


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint as `inspect` lists it; `problem` is None for a valid one."""

    name: str
    samples_seen: int
    stage: int | None
    num_bytes: int
    problem: str | None


class SavedCheckpoint:
    """A finished checkpoint in a storage; what is read of it is verified.

    Every method raises `DamagedError`, naming the file, where that is not what was written.

    Args:
        storage: the run's storage.
        name: of the checkpoint's folder.
    """

    def __init__(self, storage: Storage, name: str):
        self.name = name
        self.samples_seen = position_of(name)
        self._storage = storage
        self._folder = f"{FOLDER}/{name}"
        self.manifest = _read_manifest(storage, f"{self._folder}/{MANIFEST_FILE}")

    @property
    def num_bytes(self) -> int:
        """Size of its own files; frozen ratios, which it shares, are not counted."""
        return sum(about["num_bytes"] for about in self.manifest["files"].values())

    def shapes(self, stem: str) -> dict[str, list[int]]:
        """The shapes of all tensors of `generator`, `ratio` or `chains`."""
        return self.manifest["tensors"][stem]

    def values(self, file: str) -> dict[str, Any]:
        """The plain values of `state` or `clock`."""
        return json.loads(self._verified(f"{self._folder}/{file}.json", self.manifest["files"][f"{file}.json"]))

    def read(self, stem: str, wanted: Sequence[Span]) -> dict[Span, Tensor]:
        """The elements of the wanted spans; only the parts that hold some of them are read."""
        names = {span.name for span in wanted}
        needed = [
            (name, about)
            for name, about in self.manifest["files"].items()
            if about.get("stem") == stem
            and any(span[0] in names and _overlaps(span, wanted) for span in about["spans"])
        ]
        return assemble(wanted, (one for part in self._read_parts(needed) for one in part))

    def ratios(self) -> list[dict[str, Tensor]]:
        """Weights of the frozen ratios, in the order of their stages."""
        return [parse_tensors(about["file"], self._read_ratio(about)) for about in self.manifest["ratios"]]

    def verify(self) -> None:
        """Reads everything."""
        for name, about in self.manifest["files"].items():
            self._verified(f"{self._folder}/{name}", about)
        self.ratios()

    def _read_parts(self, needed: list[tuple[str, dict[str, Any]]]) -> Iterator[list[Piece]]:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="checkpoint-read") as pool:
            yield from _a_few_ahead(
                pool,
                lambda item: parse_part(item[0], self._verified(f"{self._folder}/{item[0]}", item[1])),
                needed,
            )

    def _read_ratio(self, about: Mapping[str, Any]) -> bytes:
        """A frozen ratio, or its copy where it is damaged: all checkpoints of a run depend on it."""
        try:
            return self._verified(about["file"], about)
        except DamagedError as error:
            log.warning("%s Its copy is used.", error)
            return self._verified(copy_of(about["file"]), about)

    def _verified(self, path: str, about: Mapping[str, Any]) -> bytes:
        try:
            data = self._storage.read_bytes(path)
        except NotFoundError as error:
            raise DamagedError(f"{self._storage.url_of(path)} is missing.") from error
        if len(data) != about["num_bytes"] or hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise DamagedError(f"{self._storage.url_of(path)} is damaged: its checksum is not the manifest's.")
        return data


class CheckpointReader:
    """The checkpoints of one run, as storage lists them now (no listing is cached).

    Args:
        storage: the run's storage.
    """

    def __init__(self, storage: Storage):
        self.storage = storage
        self.damaged: set[str] = set()

    def names(self) -> list[str]:
        """Every checkpoint folder, finished or not, newest first."""
        return sorted((name for name in self.storage.list(FOLDER) if _NAME.fullmatch(name)), reverse=True)

    def finished(self) -> list[str]:
        """The folders that have a manifest, valid or not, newest first."""
        return [name for name in self.names() if self._is_finished(name)]

    def candidates(self) -> list[str]:
        """`finished`, with a warning for every folder that is not."""
        finished = []
        for name in self.names():
            if self._is_finished(name):
                finished.append(name)
            else:
                log.warning("passing over checkpoint %s: it was never finished", name)
        return finished

    def pass_over(self, name: str, problem: str) -> None:
        """Warns of a damaged checkpoint; the next save clears it away."""
        self.damaged.add(name)
        log.warning("passing over checkpoint %s: %s", name, problem)

    def open(self, name: str) -> SavedCheckpoint:
        """A finished checkpoint; see `SavedCheckpoint` for what it raises."""
        return SavedCheckpoint(self.storage, name)

    def newest(self, use: Callable[[SavedCheckpoint], T]) -> T | None:
        """`use` of the newest checkpoint for which it finds everything it reads sound; None where there is none."""
        for name in self.candidates():
            try:
                return use(self.open(name))
            except DamagedError as error:
                self.pass_over(name, str(error))
        return None

    def describe(self) -> list[CheckpointInfo]:
        """Every checkpoint, oldest first, with stage, size and validity (every file is read and verified)."""
        infos = []
        for name in reversed(self.names()):
            stage, num_bytes, problem = None, 0, None if self._is_finished(name) else "it was never finished"
            if problem is None:
                try:
                    saved = self.open(name)
                    stage, num_bytes = saved.manifest["stage"], saved.num_bytes
                    saved.verify()
                except DamagedError as error:
                    problem = str(error)
            infos.append(CheckpointInfo(name, position_of(name), stage, num_bytes, problem))
        return infos

    def _is_finished(self, name: str) -> bool:
        return self.storage.exists(f"{FOLDER}/{name}/{MANIFEST_FILE}")


def position_of(name: str) -> int:
    """`samples_seen` of a checkpoint's name."""
    return int(name[:12])


def _read_manifest(storage: Storage, path: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.read_bytes(path))
        sound = manifest.pop("sha256") == digest_of(manifest)
    except NotFoundError as error:
        raise DamagedError(f"{storage.url_of(path)} is missing, so the checkpoint was never finished.") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise DamagedError(f"{storage.url_of(path)} is damaged: it is not the manifest that was written.")
    if manifest["format_version"] != FORMAT_VERSION:
        raise StorageError(
            f"{storage.url_of(path)} has format version {manifest['format_version']}, but this ebmscale reads "
            f"{FORMAT_VERSION}; use the ebmscale that wrote it."
        )
    return manifest


def _overlaps(span: Sequence[Any], wanted: Sequence[Span]) -> bool:
    name, start, length = span
    return any(name == w.name and start < w.start + w.length and w.start < start + length for w in wanted)


def _a_few_ahead(pool: ThreadPoolExecutor, work: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
    """`pool.map`, with no more than a few results waiting to be taken."""
    waiting = list(reversed(items))
    running: deque[Future[T]] = deque()
    while waiting or running:
        while waiting and len(running) < 2 * AT_ONCE:
            running.append(pool.submit(work, waiting.pop()))
        yield running.popleft().result()


def copy_of(file: str) -> str:
    """The name of the second copy of a frozen ratio's file."""
    return file.replace(".safetensors", ".copy.safetensors")


def digest_of(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content, however it is laid out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
