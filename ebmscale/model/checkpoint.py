"""Reading checkpoints. A checkpoint is a folder that is complete once its manifest, which is written last, exists."""

import hashlib
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from ebmscale.documents import read_json
from ebmscale.errors import DamagedError, NotFoundError, StorageError
from ebmscale.model.pieces import Piece, Span, assemble, parse_part, parse_tensors
from ebmscale.model.run_documents import CheckpointManifest, ClockState, FileAbout, RatioAbout, RunState
from ebmscale.storage import Storage
from ebmscale.stored import DOCUMENT_BYTES, as_form, read_file
from ebmscale.stored import digest as digest_of

log = logging.getLogger(__name__)


T = TypeVar("T")


FORMAT_VERSION = 2


FOLDER = "checkpoints"


RATIO_FOLDER = "ratios"


MANIFEST_FILE = "manifest.json"


NAMES_FILE = "checkpoints.json"


AT_ONCE = 4  # parts written or read together


# The tensors of a model are those whose names begin with one of WEIGHTS, and those of the stem AVERAGE.
WEIGHTS, AVERAGE = ("weights/", "base/"), "average"


_NAME = re.compile(r"\d{12}-[0-9a-f]{12}")


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint in the table of `inspect`. `problem` is None if the checkpoint is valid."""

    name: str
    samples_seen: int
    stage: int | None
    num_bytes: int
    problem: str | None


class SavedCheckpoint:
    """A complete checkpoint in a storage. Everything that is read from it is verified.

    Every method raises a `DamagedError` that names the file if the content is not what was written.

    Args:
        storage: the run's storage.
        name: of the folder of the checkpoint.
    """

    def __init__(self, storage: Storage, name: str):
        self.name = name
        self.samples_seen = position_of(name)
        self._storage = storage
        self._folder = f"{FOLDER}/{name}"
        self.manifest = _read_manifest(storage, f"{self._folder}/{MANIFEST_FILE}")

    @property
    def num_bytes(self) -> int:
        """Size of its own files. Frozen ratios are not counted, since several checkpoints share them."""
        return sum(known.num_bytes for known in self.manifest.files.values())

    def shapes(self, stem: str) -> dict[str, list[int]]:
        """The shapes of all tensors of a stem: `generator`, `ratio` or `chains`."""
        if stem not in self.manifest.tensors:
            raise DamagedError(f"The checkpoint {self._storage.url_of(self._folder)} has no tensors of {stem}.")
        return self.manifest.tensors[stem]

    def values(self, file: str) -> dict[str, Any]:
        """The plain values of `state` or `clock`."""
        path, known = f"{self._folder}/{file}.json", self.manifest.files.get(f"{file}.json")
        if known is None:
            raise DamagedError(f"{self._storage.url_of(path)} is not listed by the checkpoint's manifest.")
        found = read_json(self._verified(path, known), self._storage.url_of(path), DamagedError, non_finite=True)
        return as_form(found, dict[str, Any], self._storage.url_of(path))

    def state(self) -> RunState:
        """The state of the run, from `state.json`."""
        where = self._storage.url_of(f"{self._folder}/state.json")
        state = as_form(self.values("state"), RunState, where)
        if state.samples_seen != self.samples_seen:
            raise DamagedError(f"{where} is of {state.samples_seen:,} samples, not of {self.samples_seen:,}.")
        return state

    def clock(self) -> ClockState:
        """The clock, from `clock.json`."""
        return as_form(self.values("clock"), ClockState, self._storage.url_of(f"{self._folder}/clock.json"))

    def read(self, stem: str, wanted: Sequence[Span]) -> dict[Span, Tensor]:
        """The elements of the wanted spans. Only parts that hold some of these elements are read."""
        names = {span.name for span in wanted}
        needed = [
            (name, known)
            for name, known in self.manifest.files.items()
            if known.stem == stem and any(span[0] in names and _overlaps(span, wanted) for span in known.spans)
        ]
        return assemble(wanted, (one for part in self._read_parts(needed) for one in part))

    def ratios(self) -> list[dict[str, Tensor]]:
        """The weights of the frozen ratios, in the order of their stages."""
        found = [parse_tensors(known.file, self._read_ratio(known)) for known in self.manifest.ratios]
        for known, weights in zip(self.manifest.ratios, found, strict=True):
            self._check_finite(known.file, weights.values())
        return found

    def verify(self) -> None:
        """Reads and verifies every file, frozen ratios included."""
        parts = [(name, known) for name, known in self.manifest.files.items() if known.stem is not None]
        for _ in self._read_parts(parts):
            pass
        for name, known in self.manifest.files.items():
            if known.stem is None:
                self._verified(f"{self._folder}/{name}", known)
        self.ratios()

    def _read_parts(self, needed: list[tuple[str, FileAbout]]) -> Iterator[list[Piece]]:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="checkpoint-read") as pool:
            yield from _a_few_ahead(pool, lambda item: self._read_part(*item), needed)

    def _read_part(self, name: str, known: FileAbout) -> list[Piece]:
        """The pieces of a part, after a check that they are those in the manifest."""
        path = f"{self._folder}/{name}"
        pieces = parse_part(path, self._verified(path, known))
        if sorted(one.span for one in pieces) != sorted(Span(*span) for span in known.spans):
            raise DamagedError(f"{self._storage.url_of(path)} holds other tensors than the manifest says.")
        weights = (one.values for one in pieces if known.stem == AVERAGE or one.span.name.startswith(WEIGHTS))
        self._check_finite(path, weights)
        return pieces

    def _check_finite(self, path: str, weights: Iterable[Tensor]) -> None:
        """Refuses weights that are NaN or infinite. Neither training nor sampling can continue from them."""
        if not all(bool(one.isfinite().all()) for one in weights):
            raise DamagedError(f"{self._storage.url_of(path)} holds weights that are not finite numbers.")

    def _read_ratio(self, known: RatioAbout) -> bytes:
        """The file of a frozen ratio, or its copy if it is damaged. All later checkpoints depend on it."""
        try:
            return self._verified(known.file, known)
        except DamagedError as error:
            log.warning("%s Its copy is used.", error)
            return self._verified(copy_of(known.file), known)

    def _verified(self, path: str, known: FileAbout | RatioAbout) -> bytes:
        try:
            data = read_file(self._storage, path, known.num_bytes)
        except NotFoundError as error:
            raise DamagedError(f"{self._storage.url_of(path)} is missing.") from error
        if len(data) != known.num_bytes or hashlib.sha256(data).hexdigest() != known.sha256:
            raise DamagedError(f"{self._storage.url_of(path)} is damaged: its checksum is not the manifest's.")
        return data


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


def position_of(name: str) -> int:
    """`samples_seen` from the name of a checkpoint."""
    return int(name[:12])


def about(data: bytes) -> dict[str, Any]:
    """Size and sha256 of a file's content, for a manifest."""
    return {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read_manifest(storage: Storage, path: str) -> CheckpointManifest:
    where = storage.url_of(path)
    try:
        manifest = read_json(read_file(storage, path, DOCUMENT_BYTES), where, DamagedError, non_finite=True)
    except NotFoundError as error:
        raise DamagedError(f"{where} is missing, so the checkpoint was never finished.") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != digest_of(manifest):
        raise DamagedError(f"{where} is damaged: it is not the manifest that was written.")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{where} has format version {str(version)[:20]}, but this ebmscale reads {FORMAT_VERSION}; "
            "use the ebmscale that wrote it."
        )
    return as_form(manifest, CheckpointManifest, where)


def _overlaps(span: Sequence[Any], wanted: Sequence[Span]) -> bool:
    name, start, length = span
    return any(name == w.name and start < w.start + w.length and w.start < start + length for w in wanted)


def _a_few_ahead(pool: ThreadPoolExecutor, work: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
    """`pool.map` that holds only a few results at a time."""
    waiting = list(reversed(items))
    running: deque[Future[T]] = deque()
    while waiting or running:
        while waiting and len(running) < 2 * AT_ONCE:
            running.append(pool.submit(work, waiting.pop()))
        yield running.popleft().result()


def copy_of(file: str) -> str:
    """The name of the copy of the file of a frozen ratio."""
    return file.replace(".safetensors", ".copy.safetensors")
