"""Checkpoints: folders that exist only once their manifest, written last, is there.

    URL/NAME/checkpoints/000000064000/{generator,ratio,chains}.safetensors, {state,clock}.json, manifest.json
    URL/NAME/ratios/stage-001.safetensors, ...    frozen ratios, written once and shared by all later checkpoints

The name of a checkpoint is its `samples_seen`. Tensors are safetensors and the rest is JSON: nothing is unpickled.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ebmscale.errors import StorageError
from ebmscale.storage import Storage

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
FOLDER = "checkpoints"
RATIO_FOLDER = "ratios"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        samples_seen: the position.
        tensors: file stem -> name -> tensor, e.g. `tensors["generator"]["weights/..."]`.
        state: plain values that the run's course depends on.
        clock: seconds spent, which it does not depend on.
        ratios: weights of the frozen ratios, in the order of their stages.
    """

    samples_seen: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    clock: dict[str, Any]
    ratios: list[dict[str, Tensor]]


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint as `inspect` lists it; `problem` is None for a valid one."""

    samples_seen: int
    stage: int | None
    num_bytes: int
    problem: str | None


class CheckpointStore:
    """The checkpoints of one run. Writing goes on in the background, one at a time.

    Args:
        storage: the run's storage.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: checkpoints at multiples of this many samples are kept as well; 0 keeps none.
    """

    def __init__(self, storage: Storage, keep_last: int = 2, keep_every: int = 0):
        self._storage = storage
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self,
        samples_seen: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        clock: Mapping[str, Any],
        ratios: list[dict[str, Tensor]],
    ) -> None:
        """Copies everything now, waits for the checkpoint before, and writes this one in the background.

        Raises:
            StorageError: the checkpoint before could not be written.
        """
        files = {f"{stem}.safetensors": save_tensors(_for_storage(named)) for stem, named in tensors.items()}
        files |= {f"{stem}.json": json.dumps(d, indent=1).encode() for stem, d in (("state", state), ("clock", clock))}
        frozen = [save_tensors(_for_storage(weights)) for weights in ratios]
        self.wait()
        self._pending = self._pool.submit(self._write, samples_seen, files, frozen, state)

    def wait(self) -> None:
        """Waits until what was saved is written; raises what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def latest(self) -> Checkpoint | None:
        """The newest valid checkpoint, or None; damaged and unfinished ones are named in a warning and passed over."""
        for samples_seen in reversed(self.positions()):
            try:
                return self.load(samples_seen)
            except StorageError as error:
                log.warning("passing over checkpoint %d: %s", samples_seen, error)
        return None

    def load(self, samples_seen: int) -> Checkpoint:
        """Reads and verifies one checkpoint.

        Raises:
            StorageError: it is unfinished or damaged; names the file.
        """
        folder = self._folder(samples_seen)
        manifest = self._manifest(samples_seen)
        files = {name: self._verified(f"{folder}/{name}", about) for name, about in manifest["files"].items()}
        ratios = [parse_tensors(name, self._verified(name, about)) for name, about in manifest["ratios"].items()]
        tensors = {
            name.removesuffix(".safetensors"): parse_tensors(name, data)
            for name, data in files.items()
            if name.endswith(".safetensors")
        }
        return Checkpoint(
            samples_seen, tensors, json.loads(files["state.json"]), json.loads(files["clock.json"]), ratios
        )

    def positions(self) -> list[int]:
        """`samples_seen` of every checkpoint folder, finished or not, oldest first."""
        return sorted(int(name) for name in self._storage.list(FOLDER) if re.fullmatch(r"\d{12}", name))

    def has_finished(self) -> bool:
        """Whether any checkpoint was ever finished, valid or not."""
        return any(self._storage.exists(f"{self._folder(p)}/manifest.json") for p in self.positions())

    def describe(self) -> list[CheckpointInfo]:
        """Every checkpoint with stage, size and validity (every file is read and verified)."""
        found = []
        for samples_seen in self.positions():
            stage, num_bytes, problem = None, 0, None
            try:
                manifest = self._manifest(samples_seen)
                num_bytes = sum(about["num_bytes"] for about in manifest["files"].values())
                stage = manifest["stage"]
                self.load(samples_seen)
            except StorageError as error:
                problem = str(error)
            found.append(CheckpointInfo(samples_seen, stage, num_bytes, problem))
        return found

    def _write(self, samples_seen: int, files: dict[str, bytes], frozen: list[bytes], state: Mapping[str, Any]) -> None:
        folder = self._folder(samples_seen)
        ratios = {f"{RATIO_FOLDER}/stage-{stage:03d}.safetensors": data for stage, data in enumerate(frozen, start=1)}
        for name, data in ratios.items():
            if not self._storage.exists(name) or self._storage.read_bytes(name) != data:
                self._storage.publish(name, data)
        for name, data in files.items():
            self._storage.publish(f"{folder}/{name}", data)
        manifest = {
            "format_version": FORMAT_VERSION,
            "samples_seen": samples_seen,
            "stage": state["stages"]["stage"]["stage"],
            "world_size": state["world_size"],
            "versions": {"torch": torch.__version__},
            "files": {name: _about(data) for name, data in files.items()},
            "ratios": {name: _about(data) for name, data in ratios.items()},
        }
        manifest["sha256"] = _digest(manifest)
        self._storage.publish(f"{folder}/manifest.json", json.dumps(manifest, indent=1).encode())
        self._retain()

    def _retain(self) -> None:
        """Deletes what the policy does not keep; the newest `keep_last` (at least two) always stay."""
        finished = [p for p in self.positions() if self._storage.exists(f"{self._folder(p)}/manifest.json")]
        for samples_seen in finished[: -self._keep_last]:
            if not (self._keep_every and samples_seen % self._keep_every == 0):
                folder = self._folder(samples_seen)
                self._storage.delete(f"{folder}/manifest.json")  # first, so that no half-deleted one looks finished
                self._storage.delete(folder)

    def _manifest(self, samples_seen: int) -> dict[str, Any]:
        path = f"{self._folder(samples_seen)}/manifest.json"
        if not self._storage.exists(path):
            raise StorageError(f"{self._storage.url_of(path)} is missing, so the checkpoint was never finished.")
        try:
            manifest = json.loads(self._storage.read_bytes(path))
            sound = manifest.pop("sha256") == _digest(manifest)
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise StorageError(f"{self._storage.url_of(path)} is damaged: it is not the manifest that was written.")
        if manifest["format_version"] != FORMAT_VERSION:
            raise StorageError(
                f"{self._storage.url_of(path)} has format version {manifest['format_version']}, "
                f"but this ebmscale reads {FORMAT_VERSION}."
            )
        return manifest

    def _verified(self, path: str, about: Mapping[str, Any]) -> bytes:
        data = self._storage.read_bytes(path)
        if len(data) != about["num_bytes"] or _about(data) != about:
            raise StorageError(f"{self._storage.url_of(path)} is damaged: its checksum is not the manifest's.")
        return data

    @staticmethod
    def _folder(samples_seen: int) -> str:
        return f"{FOLDER}/{samples_seen:012d}"


def _for_storage(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content, however it is laid out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _about(data: bytes) -> dict[str, Any]:
    return {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def parse_tensors(name: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `name` names it in errors.

    Raises:
        StorageError: it is none.
    """
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise StorageError(f"{name} is not a safetensors file: {error}.") from None
