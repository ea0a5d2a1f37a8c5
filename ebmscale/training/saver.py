"""Saves checkpoints in the background, by all ranks together. Training waits only for one copy of the state in memory.

A checkpoint has two phases. In the first one every rank writes its own parts. When all ranks have finished, rank 0
writes the plain values and, last, the manifest. The ranks know each other's progress from flags that the loop reduces
once a batch together with other values (`flags`, `advance`). So no rank waits for another rank or for the storage while
it trains.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ebmscale.config import CheckpointBlock
from ebmscale.errors import LostRunError, StorageError
from ebmscale.model.checkpoint import AT_ONCE
from ebmscale.model.pieces import PartImage, Piece, in_parts, layout_of
from ebmscale.training.checkpoint import CheckpointStore, make_token, name_of, retried
from ebmscale.training.owner import Lease
from ebmscale.world import World

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_S = 0.02


@dataclass(frozen=True)
class Draft:
    """The content of a checkpoint that rank 0 writes beside the parts.

    Attributes:
        about: `samples_seen`, `stage`, `world_size`, `metrics`, `tensors` (stem -> name -> shape) for the manifest.
        values: plain values by file stem, `state` and `clock`.
        ratios: weights of the frozen ratios.
    """

    about: dict[str, Any]
    values: dict[str, dict[str, Any]]
    ratios: list[dict[str, Tensor]]


class Saver:
    """Writes a run's checkpoints, one at a time. All ranks call the same methods in the same order.

    Args:
        store: the checkpoints of the run. Its stop event does not end the waits of a save. `close` ends them.
        world: rank and size of this process.
        settings: how long a failing storage is tried again.
        lease: the right to write the run; None if no other process can write it.

    Attributes:
        phase: the current phase, equal on all ranks.
        last_saved: `samples_seen` of the newest complete checkpoint that this saver knows of.
        before_manifest: rank 0 calls it in the background before it writes the manifest. An exception that it raises
            counts as a failed write.
    """

    def __init__(self, store: CheckpointStore, world: World, settings: CheckpointBlock, lease: Lease | None = None):
        self.store = store
        self._lease = lease
        self.phase: Literal["idle", "parts", "manifest"] = "idle"
        self.last_saved: int | None = None
        self.before_manifest: Callable[[], None] = lambda: None
        self._world, self._settings = world, settings
        self._token = world.broadcast(make_token())
        self._images: dict[str, list[PartImage]] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="checkpoint")
        self._coordinator = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._cancel = threading.Event()
        self._writing = store.hearing(self._cancel)
        self._job: Future[Any] | None = None
        self._name, self._draft = "", Draft({}, {}, [])

    def prepare(self, state: Mapping[str, list[Piece]]) -> None:
        """Allocates the memory for this rank's share of the state, by stem, in the background."""
        self._images = {stem: [PartImage(part) for part in in_parts(share)] for stem, share in state.items()}
        self._job = self._coordinator.submit(self._touch)

    def begin(self, samples_seen: int, state: Mapping[str, list[Piece]], draft: Draft) -> None:
        """Copies this rank's share of the state, and writes it in the background. `phase` must be idle.

        Args:
            samples_seen: position of the run.
            state: this rank's share by stem.
            draft: what rank 0 writes.
        """
        if self._job is not None:
            self._job.result()  # wait until the memory is allocated
        for stem, share in state.items():
            parts = in_parts(share)
            images = self._images.get(stem, [])
            if [image.layout for image in images] != [layout_of(part) for part in parts]:
                images = self._images[stem] = [PartImage(part) for part in parts]
            for image, part in zip(images, parts, strict=True):
                image.fill(part)
        self._name, self._draft = name_of(samples_seen, self._token), draft
        self.phase = "parts"
        self._job = self._coordinator.submit(self._write_parts)

    def flags(self) -> tuple[bool, bool]:
        """Whether this rank is writing, and whether it failed or lost the run. `advance` takes the `any` over ranks."""
        job = self._job if self.phase != "idle" else None
        failed = job is not None and job.done() and job.exception() is not None
        return job is not None and not job.done(), failed or (self._lease is not None and self._lease.lost is not None)

    def advance(self, writing: bool, failed: bool) -> None:
        """Begins the next phase once no rank is writing (collective).

        Args:
            writing: whether any rank is writing.
            failed: whether any rank failed.

        Raises:
            StorageError: the storage of a rank failed for longer than `checkpoint.retry_s`. Earlier checkpoints are
                intact.
            LostRunError: this group of processes may no longer write the run.
        """
        if failed:
            self._fail()
        if self.phase == "idle" or writing:
            return
        assert self._job is not None
        if self.phase == "parts":
            parts = self._world.gather_objects(self._job.result())
            self.phase = "manifest"
            self._job = None
            if self._world.is_first:
                files = {file: known for of_rank in parts for file, known in of_rank.items()}
                self._job = self._coordinator.submit(self._commit, files)
            else:
                self._job = self._coordinator.submit(lambda: None)
        else:
            self.phase, self._job = "idle", None
            self.last_saved = self._draft.about["samples_seen"]

    def finish(self, out_of_time: Callable[[], bool] = lambda: False) -> None:
        """Waits until the checkpoint that is being written is complete (collective).

        Args:
            out_of_time: whether the time for writing is over.

        Raises:
            StorageError: the checkpoint could not be written, or `out_of_time` became true on some rank before.
            LostRunError: this group of processes may no longer write the run.
        """
        while self.phase != "idle":
            time.sleep(POLL_S)
            flags = torch.tensor([*map(float, self.flags()), float(out_of_time())], device=self._world.device)
            writing, failed, late = (bool(flag) for flag in self._world.sum(flags) > 0)
            if late and writing:
                self._cancel.set()
                raise StorageError(
                    f"The checkpoint at {self._draft.about['samples_seen']:,} samples could not be written before the "
                    f"time to stop ran out; {self._intact()}."
                )
            self.advance(writing, failed)

    def close(self) -> None:
        """Cancels the write in progress."""
        self._cancel.set()
        self._coordinator.shutdown(wait=False, cancel_futures=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _touch(self) -> None:
        for images in self._images.values():
            for image in images:
                image.touch()

    def _write_parts(self) -> dict[str, dict[str, Any]]:
        rank = self._world.rank
        named = [
            (f"{stem}-{rank:04d}-{index:03d}.safetensors", image)
            for stem, images in self._images.items()
            for index, image in enumerate(images)
        ]
        self._retried(self._check)
        written = self._pool.map(self._write_part, named)
        return dict(zip((file for file, _ in named), written, strict=True))

    def _write_part(self, named: tuple[str, PartImage]) -> dict[str, Any]:
        return self._retried(lambda: self._writing.write_part(self._name, *named))

    def _commit(self, files: dict[str, dict[str, Any]]) -> None:
        draft = self._draft
        self._retried(self.before_manifest)
        ratios = self._retried(lambda: self._owned(lambda: self._writing.write_ratios(draft.ratios)))
        manifest = draft.about | {"files": files, "ratios": ratios}
        self._retried(lambda: self._owned(lambda: self._writing.commit(self._name, dict(manifest), draft.values)))
        try:
            self._owned(lambda: self._writing.retain(self._name))
        except LostRunError:
            raise
        except StorageError as error:  # the next save deletes them
            log.warning("old checkpoints could not be deleted: %s", error)

    def _owned(self, action: Callable[[], T]) -> T:
        """The result of `action`, after a check that this group of processes may still write the run."""
        self._check()
        return action()

    def _check(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _retried(self, action: Callable[[], T]) -> T:
        return retried(action, self._settings.retry_s, self._cancel, time.monotonic)

    def _fail(self) -> None:
        error = self._job.exception() if self._job is not None and self._job.done() else None
        error = (self._lease.lost if self._lease is not None else None) or error
        told = error if error is None or isinstance(error, StorageError) else StorageError(str(error))
        errors = [one for one in self._world.gather_objects(told) if one is not None]
        if error is not None and told is not error:
            raise error
        for one in errors:
            if isinstance(one, LostRunError):
                raise one
        raise StorageError(f"{errors[0]} Training stopped; {self._intact()}, and the same command resumes from it.")

    def _intact(self) -> str:
        if self.last_saved is None:
            return "what was saved before is intact"
        return f"the checkpoint at {self.last_saved:,} samples is intact"
