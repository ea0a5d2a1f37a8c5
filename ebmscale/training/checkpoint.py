"""Checkpoints: folders that exist only once their manifest, written last, is there.

    URL/NAME/checkpoints/000000064000-6921f0a35b7c/
        {generator,ratio,chains}-RANK-INDEX.safetensors     parts, written by all ranks, at most 8 MiB each
        state.json clock.json                               plain values
        manifest.json                                       every file with size, sha256 and what it holds; last
    URL/NAME/ratios/stage-001-9c1d02aa77e4.safetensors      frozen ratios, written once and shared by all checkpoints

A folder is named by `samples_seen` and by the group of processes that wrote it (when it started, and a random
number), so that a writer that was thought dead cannot touch what its successors wrote. Tensors are safetensors and
the rest is JSON: nothing is unpickled.
"""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from ebmscale.config import CheckpointBlock
from ebmscale.errors import DamagedError, StorageError
from ebmscale.model.checkpoint import (
    FOLDER,
    FORMAT_VERSION,
    MANIFEST_FILE,
    RATIO_FOLDER,
    CheckpointReader,
    T,
    copy_of,
    log,
    position_of,
)
from ebmscale.model.checkpoint import (
    digest_of as _digest,
)
from ebmscale.model.pieces import PartImage
from ebmscale.storage import Storage


class CheckpointStore(CheckpointReader):
    """The checkpoints of one run, read and written.

    Args:
        storage: the run's storage.
        settings: which checkpoints are kept.
    """

    def __init__(self, storage: Storage, settings: CheckpointBlock | None = None):
        super().__init__(storage)
        self._settings = settings or CheckpointBlock()

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
            for path in (file, copy_of(file)):
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
        self.storage.publish(f"{FOLDER}/{name}/{MANIFEST_FILE}", json.dumps(manifest).encode())

    def retain(self, newest: str) -> None:
        """Deletes what the policy does not keep, and the leftovers of dead writers.

        Args:
            newest: a checkpoint that was just written and is therefore valid: there is always one.
        """
        manifests = {}
        for name in self.finished():
            try:
                if name not in self.damaged:
                    manifests[name] = self.open(name).manifest
            except DamagedError:
                continue
        kept = {newest, *kept_by(self._settings, {name: m["metrics"] for name, m in manifests.items()})}
        for name in set(self.names()) - kept:
            self.storage.delete(f"{FOLDER}/{name}/{MANIFEST_FILE}")  # first, so that no half-deleted one looks finished
            self.storage.delete(f"{FOLDER}/{name}")
        files = {one["file"] for name in kept if name in manifests for one in manifests[name]["ratios"]}
        for file in self.storage.list(RATIO_FOLDER):
            if f"{RATIO_FOLDER}/{file}" not in files | {copy_of(one) for one in files}:
                self.storage.delete(f"{RATIO_FOLDER}/{file}")


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


def patiently(action: Callable[[], T], retry_s: float, cancel: threading.Event, clock: Callable[[], float]) -> T:
    """The result of `action`, tried again for `retry_s` seconds while the storage refuses.

    Raises:
        StorageError: it still refuses.
        Cancelled: `cancel` was set.
    """
    deadline, pause = clock() + retry_s, 1.0
    while True:
        if cancel.is_set():
            raise Cancelled
        try:
            return action()
        except StorageError as error:
            if clock() + pause > deadline:
                raise
            log.warning("%s Training goes on, and the checkpoint is tried again for %.0f s.", error, deadline - clock())
        cancel.wait(pause)
        pause = min(pause * 2, 30.0)


def make_token() -> str:
    """Twelve hexadecimal digits for a group of processes: the second it started in, and a random number."""
    return f"{int(time.time()):08x}{uuid.uuid4().hex[:4]}"


def name_of(samples_seen: int, token: str) -> str:
    """The folder of a checkpoint that the processes with this token write; names are in the order of time."""
    return f"{samples_seen:012d}-{token}"


def about(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file's content."""
    return {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
