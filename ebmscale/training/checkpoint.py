"""Writing checkpoints. A checkpoint is a folder that is complete once its manifest, which is written last, exists.

    URL/NAME/checkpoints/000000064000-6921f0a35b7c/
        {generator,ratio,chains,particles}-RANK-INDEX.safetensors   parts, written by all ranks, at most 8 MiB each
        state.json clock.json                               plain values
        manifest.json                                       size, sha256 and content of every file; written last
    URL/NAME/ratios/stage-001-9c1d02aa77e4.safetensors      frozen ratios, written once and shared by all checkpoints
    URL/NAME/checkpoints.json                               the names of the checkpoints

The name of a folder has `samples_seen` and a token of the group of processes that wrote it (time of its start, and a
random number). So a writer that others took for dead cannot change the files of its successors. Tensors are safetensors
and the rest is JSON: nothing is unpickled. A storage may list a new folder late. So a name in `checkpoints.json` counts
as much as a listed one. A checkpoint exists if its manifest can be read.
"""

import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from ebmscale.config import CheckpointBlock
from ebmscale.errors import DamagedError, LostRunError, NotFoundError, StorageError
from ebmscale.model.checkpoint import (
    FOLDER,
    FORMAT_VERSION,
    MANIFEST_FILE,
    RATIO_FOLDER,
    SavedCheckpoint,
    T,
    copy_of,
    log,
    position_of,
    size_and_digest,
)
from ebmscale.model.checkpoint_reader import NAMES_FILE, CheckpointContents, CheckpointNames, CheckpointReader
from ebmscale.model.pieces import PartImage
from ebmscale.storage import Storage
from ebmscale.stored import digest as _digest

FIRST_PAUSE_S = 1.0  # before the first retry of a failed write


class CheckpointStore(CheckpointReader):
    """The checkpoints of one run, read and written.

    Args:
        storage: the run's storage.
        settings: which checkpoints are kept.
        kept_until: the newest one that is not after this position is kept too.
    """

    def __init__(self, storage: Storage, settings: CheckpointBlock | None = None, kept_until: float = -1):
        super().__init__(storage)
        self._settings = settings or CheckpointBlock()
        self._kept_until = kept_until
        self._written: dict[str, CheckpointContents] = {}  # of what this store wrote

    def _unlisted(self) -> set[str]:
        return {*super()._unlisted(), *self._written}

    def hearing(self, stop: threading.Event) -> "CheckpointStore":
        """A store of the same checkpoints whose waits end once `stop` is set."""
        store = CheckpointStore(self.storage.hearing(stop), self._settings, self._kept_until)
        store.damaged, store._written = self.damaged, self._written
        return store

    def note(self, name: str) -> None:
        """Adds a name to `checkpoints.json`, so that the checkpoint is found before the storage lists it."""
        contents = self._read_notes().contents
        self._publish_notes(CheckpointNames(names={name, *self.names()}, contents=contents))

    def _publish_notes(self, notes: CheckpointNames) -> None:
        self.storage.publish(NAMES_FILE, notes.model_dump_json().encode())

    def write_part(self, name: str, file: str, image: PartImage) -> dict[str, Any]:
        """Writes one part of checkpoint `name`. Returns its entry for the manifest."""
        data = image.bytes()
        self.storage.publish(f"{FOLDER}/{name}/{file}", data)
        return size_and_digest(data) | {"stem": file.partition("-")[0], "spans": [list(span) for span in image.spans]}

    def write_ratios(self, ratios: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Any]]:
        """Writes every frozen ratio twice, since all later checkpoints depend on it. Returns entries for the manifest.

        Files that exist are read, and written again only if they are damaged.
        """
        found = []
        for stage, weights in enumerate(ratios, start=1):
            data = save_tensors({key: value.detach().cpu().contiguous() for key, value in weights.items()})
            known = size_and_digest(data)
            file = f"{RATIO_FOLDER}/stage-{stage:03d}-{known['sha256'][:12]}.safetensors"
            for path in (file, copy_of(file)):
                if not self._holds(path, data):
                    self.storage.publish(path, data)
            found.append({"file": file, **known})
        return found

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return self.storage.read_bytes(path) == data
        except NotFoundError:
            return False

    def commit(self, name: str, manifest: dict[str, Any], values: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the plain values and then the manifest, which completes the checkpoint.

        Args:
            name: of the checkpoint.
            manifest: its fields; files, version and checksum are added.
            values: plain values by stem, `state` and `clock`.
        """
        for stem, content in values.items():
            data = json.dumps(content, indent=1).encode()
            self.storage.publish(f"{FOLDER}/{name}/{stem}.json", data)
            manifest["files"][f"{stem}.json"] = size_and_digest(data)
        manifest |= {"format_version": FORMAT_VERSION, "versions": {"torch": torch.__version__}}
        manifest["sha256"] = _digest(manifest)
        self.note(name)
        self.storage.publish(f"{FOLDER}/{name}/{MANIFEST_FILE}", json.dumps(manifest).encode())
        self._written[name] = _contents(manifest["metrics"], [one["file"] for one in manifest["ratios"]])

    def retain(self, newest: str) -> None:
        """Deletes checkpoints that the policy does not keep, and incomplete ones of dead writers.

        `checkpoints.json` has everything that the policy needs of older checkpoints, so they are not opened. Only the
        newest checkpoints, which a resume would use, are opened. They must be valid.

        Args:
            newest: the checkpoint that was just written. It is valid and is always kept.
        """
        found = {newest, *self.names(), *self._written}
        names = found - self.damaged
        noted = self._read_notes().contents | self._written
        known = {name: noted[name] for name in names if name in noted}
        for name in names - known.keys():
            self._open_known(name, known)
        opened = set(self._written)
        while unsure := [name for name in self._newest(known) if name not in opened]:
            opened.update(unsure)
            for name in unsure:
                del known[name]
                self._open_known(name, known)
        kept = {newest, *kept_by(self._settings, {name: one.metrics for name, one in known.items()})}
        kept |= set(sorted(name for name in known if position_of(name) <= self._kept_until)[-1:])
        self._publish_notes(CheckpointNames(names=kept, contents={name: known[name] for name in kept if name in known}))
        for name in found - kept:
            self.storage.delete(f"{FOLDER}/{name}/{MANIFEST_FILE}")  # first: after a crash it is incomplete
            self.storage.delete(f"{FOLDER}/{name}")
            self._written.pop(name, None)
        if newest not in known:
            return  # the ratios that it needs are unknown
        files = {file for name in kept for file in known[name].ratio_files}
        for file in self.storage.list(RATIO_FOLDER):
            if f"{RATIO_FOLDER}/{file}" not in files | {copy_of(one) for one in files}:
                self.storage.delete(f"{RATIO_FOLDER}/{file}")

    def _newest(self, known: Mapping[str, CheckpointContents]) -> list[str]:
        return sorted(known, reverse=True)[: self._settings.keep_last]

    def _open_known(self, name: str, known: dict[str, CheckpointContents]) -> None:
        """Adds what the policy needs of a checkpoint, if it is complete and not damaged."""
        if self._is_finished(name):
            with suppress(DamagedError):
                manifest = self.open(name).manifest
                known[name] = _contents(manifest.metrics, [one.file for one in manifest.ratios])


def _contents(metrics: Mapping[str, float], ratio_files: list[str]) -> CheckpointContents:
    """The contents of a checkpoint, without metrics that are not finite: JSON cannot hold these."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return CheckpointContents(metrics=finite, ratio_files=ratio_files)


def kept_by(settings: CheckpointBlock, metrics: Mapping[str, Mapping[str, float]]) -> set[str]:
    """The names that a policy keeps, from the metrics of the checkpoints by name: a pure function."""
    newest_first = sorted(metrics, reverse=True)
    kept = set(newest_first[: settings.keep_last])
    if settings.keep_every:
        first = {position_of(name) // settings.keep_every: name for name in newest_first}  # the oldest comes last
        kept |= {name for number, name in first.items() if number > 0}
    sign = 1 if settings.best_mode == "min" else -1
    measured = [name for name in newest_first if settings.best_metric in metrics[name]]
    measured.sort(key=lambda name: sign * metrics[name][settings.best_metric])
    return kept | set(measured[: settings.keep_best])


def copy_checkpoint(
    saved: SavedCheckpoint, donor: Storage, run: Storage, check: Callable[[], None] = lambda: None
) -> None:
    """Copies a checkpoint from run to run; the manifest is last, so that an interrupted copy is not a checkpoint.

    Args:
        saved: the checkpoint, which was verified.
        donor: the storage of the run that has it.
        run: the storage of the other run.
        check: called before every file; an exception that it raises ends the copying.

    Raises:
        DamagedError: the copy is damaged.
    """
    folder = f"{FOLDER}/{saved.name}"
    manifest = donor.read_bytes(f"{folder}/{MANIFEST_FILE}")
    for file in (
        *(ratio.file for ratio in saved.manifest.ratios),
        *(f"{folder}/{one}" for one in saved.manifest.files),
    ):
        check()
        run.publish(file, donor.read_bytes(file))
    CheckpointStore(run).note(saved.name)
    run.publish(f"{folder}/{MANIFEST_FILE}", manifest)
    CheckpointReader(run).open(saved.name).verify()


class Cancelled(Exception):
    """The write was cancelled because the process ends."""


def retried(
    action: Callable[[], T],
    retry_s: float,
    cancel: threading.Event,
    clock: Callable[[], float],
    what: str = "Training continues, and the checkpoint",
) -> T:
    """The result of `action`, which is retried for `retry_s` seconds while the storage fails.

    Args:
        action: the action.
        retry_s: how long it is tried.
        cancel: ends the wait when it is set.
        clock: a monotonic clock in seconds.
        what: the subject of the warning before a retry.

    Raises:
        LostRunError: this process may not write the run.
        DamagedError: what the storage holds cannot be used.
        StorageError: the storage still fails.
        Cancelled: `cancel` was set.
    """
    deadline, pause = clock() + retry_s, FIRST_PAUSE_S
    while True:
        if cancel.is_set():
            raise Cancelled
        try:
            return action()
        except (LostRunError, DamagedError):  # these do not pass
            raise
        except StorageError as error:
            if clock() + pause > deadline:
                raise
            log.warning("%s %s is tried again for %.0f s.", error, what, deadline - clock())
        cancel.wait(pause)
        pause = min(pause * 2, 30.0)


def make_token() -> str:
    """Twelve hexadecimal digits that identify a group of processes: its start in seconds, and a random number."""
    return f"{int(time.time()) % 2**32:08x}{uuid.uuid4().hex[:4]}"


def name_of(samples_seen: int, token: str) -> str:
    """The name of a checkpoint's folder. The order of the names is the order of `samples_seen`."""
    return f"{samples_seen:012d}-{token}"
