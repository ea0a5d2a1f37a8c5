"""Checkpoints: folders that exist only once their manifest, written last, is there.

    URL/NAME/checkpoints/000000064000-6921f0a35b7c/
        {generator,ratio,chains}-RANK-INDEX.safetensors     parts, written by all ranks, at most 8 MiB each
        state.json clock.json                               plain values
        manifest.json                                       every file with size, sha256 and what it holds; last
    URL/NAME/ratios/stage-001-9c1d02aa77e4.safetensors      frozen ratios, written once and shared by all checkpoints
    URL/NAME/checkpoints.json                               the names that the writer knows of

A folder is named by `samples_seen` and by the group of processes that wrote it (when it started, and a random
number), so that a writer that was thought dead cannot touch what its successors wrote. Tensors are safetensors and
the rest is JSON: nothing is unpickled. A storage may list a new folder late, so what exists is never told from a
listing alone: the names that the writer noted count too, and whether one exists is asked of its manifest.
"""

import hashlib
import json
import logging
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save as save_tensors
from torch import Tensor

from ebmscale.config import CheckpointBlock
from ebmscale.errors import DamagedError, LostRunError, NotFoundError, StorageError
from ebmscale.storage import Storage
from ebmscale.training.parts import PartImage, Piece, Span, assemble, parse_part, parse_tensors

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT_VERSION = 2
FOLDER = "checkpoints"
RATIO_FOLDER = "ratios"
MANIFEST_FILE = "manifest.json"
NAMES_FILE = "checkpoints.json"
AT_ONCE = 4  # parts written or read together
FIRST_PAUSE_S = 1.0  # before a write that the storage refused is tried again
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
            return self._verified(_copy_of(about["file"]), about)

    def _verified(self, path: str, about: Mapping[str, Any]) -> bytes:
        try:
            data = self._storage.read_bytes(path)
        except NotFoundError as error:
            raise DamagedError(f"{self._storage.url_of(path)} is missing.") from error
        if len(data) != about["num_bytes"] or hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise DamagedError(f"{self._storage.url_of(path)} is damaged: its checksum is not the manifest's.")
        return data


class Names(BaseModel):
    """What `NAMES_FILE` holds: checkpoints that were written, or were about to be."""

    names: set[str] = set()


class CheckpointStore:
    """The checkpoints of one run: those that the storage lists now (no listing is cached), or that the writer noted.

    Args:
        storage: the run's storage.
        settings: which checkpoints are kept.
    """

    def __init__(self, storage: Storage, settings: CheckpointBlock | None = None):
        self.storage = storage
        self._settings = settings or CheckpointBlock()
        self.damaged: set[str] = set()
        self._written: dict[str, dict[str, Any]] = {}  # of what this store wrote: metrics and ratios

    def names(self) -> list[str]:
        """Every checkpoint folder, finished or not, newest first."""
        listed = {name for name in self.storage.list(FOLDER) if _NAME.fullmatch(name)}
        unlisted = {*self._noted(), *self._written} - listed
        return sorted(listed | {name for name in unlisted if self._is_finished(name)}, reverse=True)

    def note(self, name: str) -> None:
        """Notes a checkpoint that is about to exist, so that it is found before the storage lists it."""
        noted = Names(names={name, *self.names()})
        self.storage.publish(NAMES_FILE, noted.model_dump_json().encode())

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

    def write_part(self, name: str, file: str, image: PartImage) -> dict[str, Any]:
        """Writes one part of checkpoint `name`; returns what the manifest says of it."""
        data = image.bytes()
        self.storage.publish(f"{FOLDER}/{name}/{file}", data)
        return about(data) | {"stem": file.partition("-")[0], "spans": [list(span) for span in image.spans]}

    def write_ratios(self, ratios: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Any]]:
        """Writes the frozen ratios that are not there yet, twice each, since all checkpoints depend on them.

        Those that are there are read, and written again where they were damaged.
        """
        found = []
        for stage, weights in enumerate(ratios, start=1):
            data = save_tensors({key: value.detach().cpu().contiguous() for key, value in weights.items()})
            known = about(data)
            file = f"{RATIO_FOLDER}/stage-{stage:03d}-{known['sha256'][:12]}.safetensors"
            for path in (file, _copy_of(file)):
                if not self.storage.exists(path) or self.storage.read_bytes(path) != data:
                    self.storage.publish(path, data)
            found.append({"file": file, **known})
        return found

    def commit(self, name: str, manifest: dict[str, Any], values: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the plain values and then the manifest, with which the checkpoint exists; clears what is not kept."""
        for stem, content in values.items():
            data = json.dumps(content, indent=1).encode()
            self.storage.publish(f"{FOLDER}/{name}/{stem}.json", data)
            manifest["files"][f"{stem}.json"] = about(data)
        manifest |= {"format_version": FORMAT_VERSION, "versions": {"torch": torch.__version__}}
        manifest["sha256"] = _digest(manifest)
        self.note(name)
        self.storage.publish(f"{FOLDER}/{name}/{MANIFEST_FILE}", json.dumps(manifest).encode())
        self._written[name] = {key: manifest[key] for key in ("metrics", "ratios")}

    def retain(self, newest: str) -> None:
        """Deletes what the policy does not keep, and the leftovers of dead writers.

        Args:
            newest: a checkpoint that was just written and is therefore valid: there is always one.
        """
        names = {newest, *self.names(), *self._written}
        manifests = {}
        for name in names - self.damaged:
            if name in self._written:
                manifests[name] = self._written[name]
            elif self._is_finished(name):
                with suppress(DamagedError):
                    manifests[name] = self.open(name).manifest
        kept = {newest, *kept_by(self._settings, {name: m["metrics"] for name, m in manifests.items()})}
        for name in names - kept:
            self.storage.delete(f"{FOLDER}/{name}/{MANIFEST_FILE}")  # first, so that no half-deleted one looks finished
            self.storage.delete(f"{FOLDER}/{name}")
            self._written.pop(name, None)
        if newest not in manifests:
            return  # nobody knows which ratios it needs
        files = {one["file"] for name in kept for one in manifests[name]["ratios"]}
        for file in self.storage.list(RATIO_FOLDER):
            if f"{RATIO_FOLDER}/{file}" not in files | {_copy_of(one) for one in files}:
                self.storage.delete(f"{RATIO_FOLDER}/{file}")

    def _noted(self) -> set[str]:
        try:
            noted = Names.model_validate_json(self.storage.read_bytes(NAMES_FILE)).names
        except (NotFoundError, ValidationError):  # a run of an earlier version, or damaged: the listing is left
            return set()
        return {name for name in noted if _NAME.fullmatch(name)}

    def _is_finished(self, name: str) -> bool:
        return self.storage.exists(f"{FOLDER}/{name}/{MANIFEST_FILE}")


def kept_by(settings: CheckpointBlock, metrics: Mapping[str, Mapping[str, float]]) -> set[str]:
    """The checkpoints that a policy keeps, of those named with their metrics: a pure function."""
    newest_first = sorted(metrics, reverse=True)
    kept = set(newest_first[: settings.keep_last])
    if settings.keep_every:
        first = {position_of(name) // settings.keep_every: name for name in newest_first}  # the oldest comes last
        kept |= {name for number, name in first.items() if number > 0}
    sign = 1 if settings.best_mode == "min" else -1
    measured = [name for name in newest_first if settings.best_metric in metrics[name]]
    measured.sort(key=lambda name: sign * metrics[name][settings.best_metric])
    return kept | set(measured[: settings.keep_best])


class Cancelled(Exception):
    """The write was given up because the process ends."""


def patiently(
    action: Callable[[], T],
    retry_s: float,
    cancel: threading.Event,
    clock: Callable[[], float],
    what: str = "Training goes on, and the checkpoint",
) -> T:
    """The result of `action`, tried again for `retry_s` seconds while the storage refuses.

    Args:
        action: to be done.
        retry_s: how long it is tried.
        cancel: ends the waiting.
        clock: seconds that only grow.
        what: is tried again, for the warning.

    Raises:
        LostRunError: the run is not this process's to write.
        StorageError: the storage still refuses.
        Cancelled: `cancel` was set.
    """
    deadline, pause = clock() + retry_s, FIRST_PAUSE_S
    while True:
        if cancel.is_set():
            raise Cancelled
        try:
            return action()
        except LostRunError:
            raise
        except StorageError as error:
            if clock() + pause > deadline:
                raise
            log.warning("%s %s is tried again for %.0f s.", error, what, deadline - clock())
        cancel.wait(pause)
        pause = min(pause * 2, 30.0)


def position_of(name: str) -> int:
    """`samples_seen` of a checkpoint's name."""
    return int(name[:12])


def make_token() -> str:
    """Twelve hexadecimal digits for a group of processes: the second it started in, and a random number."""
    return f"{int(time.time()):08x}{uuid.uuid4().hex[:4]}"


def name_of(samples_seen: int, token: str) -> str:
    """The folder of a checkpoint that the processes with this token write; names are in the order of time."""
    return f"{samples_seen:012d}-{token}"


def about(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file's content."""
    return {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read_manifest(storage: Storage, path: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.read_bytes(path))
        sound = manifest.pop("sha256") == _digest(manifest)
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


def _copy_of(file: str) -> str:
    return file.replace(".safetensors", ".copy.safetensors")


def _digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content, however it is laid out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
