"""Endless batches of images whose order depends on (seed, samples_seen) only.

A position is the number of samples seen before a batch. A stream can start at any position at once. The position does
not depend on how far the background thread has read ahead: checkpoint the `end` of the last batch that was used.

Shapes: B rows of this rank in a batch, N samples of a split, C channels, H height, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmscale.data.ahead import ReadAhead
from ebmscale.data.assign import locate, rows_of
from ebmscale.data.cache import RangeCache
from ebmscale.data.manifest import Manifest
from ebmscale.data.order import SampleOrder
from ebmscale.data.reader import ShardReader
from ebmscale.data.shard_index import decoded
from ebmscale.data.split import Split
from ebmscale.data.windows import Rows, Windows
from ebmscale.errors import ConfigError, DataError
from ebmscale.storage import Storage

BATCHES_AHEAD = 64  # that the background thread may have ready,
AHEAD_BYTES = 64 << 20  # or images of this size: enough for the moments when many windows end at once
BATCHES_TOGETHER = 8  # that the thread makes and hands over at once,
TOGETHER_BYTES = 8 << 20  # if their images, over all ranks, have at most this size
MAX_DAMAGED = 100


@dataclass(frozen=True)
class Batch:
    """The rows of a global batch that this rank owns, in ascending order; damaged samples are left out.

    Attributes:
        images: (B, C, H, W), uint8 or float32 as the manifest's dtype says.
        labels: (B,) int64, -1 if none.
        encoded_keys: (B,) UTF-8 bytes.
        samples: (B,) int64 number in the split.
        rows: (B,) int64 row in the global batch.
        streams: (B,) int64 stream of each row.
        start: samples_seen before the global batch.
        end: samples_seen after it, the position to checkpoint.
    """

    images: Tensor
    labels: Tensor
    encoded_keys: np.ndarray
    samples: Tensor
    rows: Tensor
    streams: Tensor
    start: int
    end: int

    @property
    def keys(self) -> list[str]:
        """The B keys as text."""
        return decoded(self.encoded_keys)


class _Read(NamedTuple):
    """A batch, and the damaged samples (numbers in the split) that it left out."""

    batch: Batch
    damaged: list[int]


@dataclass(frozen=True)
class Batching:
    """How the samples of a split become batches. It is fixed for a run, and the same on every rank.

    Attributes:
        batch_size: rows of the global batch, over all ranks. Ranks get equally many rows where it is a multiple of
            `num_streams` and the number of ranks divides `num_streams`; otherwise a rank may have fewer rows, or none.
        seed: the run's seed.
        num_streams: streams into which the order is cut, at least as many as ranks.
        window: samples of a stream that are shuffled together.

    Raises:
        ConfigError: one of the sizes is below 1.
    """

    batch_size: int
    seed: int
    num_streams: int
    window: int

    def __post_init__(self) -> None:
        if min(self.batch_size, self.num_streams, self.window) < 1:
            raise ConfigError("batch_size, num_streams and window must be at least 1.")


class ImageStream:
    """Batches of a split without end: epochs follow one another, and a batch may straddle two.

    Iterating continues after the last batch taken, also in a new iteration. The memory holds a window of images for
    each owned stream, or a piece of it where all windows together have more than `windows.WINDOW_BYTES`. It holds
    batches ahead up to `AHEAD_BYTES`, indexes up to `indexes.KEPT_BYTES`, small shards up to `reader.KEPT_BYTES`, and
    ranges being read up to `reader.TOGETHER_BYTES`. A stream that starts inside a window reads only the rest of it.

    Args:
        storage: where the shards are.
        manifest: what they hold.
        split: which of them (see `split.select`).
        batching: how they become batches.
        rank: this reader, of `size`.
        size: readers in all.
        start: samples_seen to begin at.
        max_damaged: different damaged samples that this rank leaves out before it raises an error.
        cache: of the storage on this machine, if there is one.

    Attributes:
        num_samples: N, the samples of an epoch.
        position: `end` of the last batch taken, `start` at first.
        damaged: for each shard, how many different damaged samples were left out of the batches taken so far.

    Raises:
        ConfigError: the start is below 0, or there are more ranks than streams.
        DataError: while iterating, a missing shard or more than `max_damaged` damaged samples.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        split: Split,
        batching: Batching,
        *,
        rank: int = 0,
        size: int = 1,
        start: int = 0,
        max_damaged: int = MAX_DAMAGED,
        cache: RangeCache | None = None,
    ):
        if start < 0:
            raise ConfigError("The start of a stream must be at least 0.")
        if not 0 <= rank < size <= batching.num_streams:
            raise ConfigError(
                f"Rank {rank} of {size} cannot read {batching.num_streams} streams; use at most as many workers as "
                "streams."
            )
        self.batching = batching
        self.rank = rank
        self.size = size
        self.max_damaged = max_damaged
        self.position = start
        self.damaged: dict[str, int] = {}
        self._storage = storage
        self._manifest = manifest
        self._split = split
        self.num_samples = len(split)
        self._windows = Windows(
            split,
            SampleOrder(split.counts, seed=batching.seed, num_streams=batching.num_streams, window=batching.window),
            manifest.indexes.through(cache),
            ShardReader(storage, manifest, cache),
            num_owned=len(range(rank, batching.num_streams, size)),
            from_folder=storage.local_path() is not None,
        )
        self._damaged_samples: set[int] = set()
        self._ahead: ReadAhead[list[_Read]] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        depth = max(BATCHES_AHEAD // self._most_together(), 1)
        ahead = self._ahead = ReadAhead(self._read_groups(self.position), depth, AHEAD_BYTES, _image_bytes)
        try:
            for group in ahead:
                for batch, damaged in group:
                    if self._ahead is not ahead:  # closed meanwhile
                        return
                    self._count_damaged(damaged)
                    self.position = batch.end
                    yield batch
        finally:
            ahead.close()

    def close(self) -> None:
        """End the background thread. Iterating again starts it again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _most_together(self) -> int:
        """The most batches of a group."""
        batch_bytes = self.batching.batch_size * self._manifest.sample_bytes
        return max(min(BATCHES_TOGETHER, BATCHES_AHEAD, TOGETHER_BYTES // batch_bytes), 1)

    def _read_groups(self, position: int) -> Iterator[list[_Read]]:
        """The batches from a position on, in groups. The first has one batch, so that it comes soon."""
        self._windows.forget()
        together, most = 1, self._most_together()
        while True:
            yield self._read_group(position, together)
            position += together * self.batching.batch_size
            together = min(2 * together, most)

    def _read_group(self, start: int, together: int) -> list[_Read]:
        """Batches that follow one another. One call for all of them costs little more than one for each."""
        size = self.batching.batch_size
        rows = rows_of(start, together * size, self.batching.num_streams, self.rank, self.size)
        epochs, streams, offsets = locate(start + rows, self.num_samples, self.batching.num_streams)
        found = self._windows.rows(epochs, streams, offsets)
        borders = np.searchsorted(rows, size * np.arange(together + 1)).tolist()
        return [
            _read(start + number * size, size, rows[part] - number * size, streams[part], found.at(part))
            for number, part in enumerate(map(slice, borders[:-1], borders[1:]))
        ]

    def _count_damaged(self, samples: list[int]) -> None:
        """Count damaged samples that were not met before; too many end the run."""
        for sample in set(samples) - self._damaged_samples:
            self._damaged_samples.add(sample)
            shard = self._manifest.shards[int(np.searchsorted(self._split.ends, sample, "right"))].file
            self.damaged[shard] = self.damaged.get(shard, 0) + 1
        if len(self._damaged_samples) > self.max_damaged:
            worst = max(self.damaged, key=lambda shard: self.damaged[shard])
            raise DataError(
                f"{len(self._damaged_samples)} damaged samples were left out, but at most {self.max_damaged} are "
                f"allowed; most ({self.damaged[worst]}) lie in shard {self._storage.url_of(worst)}: check the set with "
                f"`ebmscale inspect --verify {self._storage.url}` and pack it again."
            )


def _read(start: int, size: int, rows: np.ndarray, streams: np.ndarray, found: Rows) -> _Read:
    """The batch of these rows, without the damaged samples."""
    damaged = []
    if not found.sound.all():
        sound = found.sound
        damaged = found.chosen[~sound].tolist()
        rows, streams, found = rows[sound], streams[sound], found.at(sound)
    batch = Batch(
        images=torch.from_numpy(found.images),
        labels=torch.from_numpy(found.labels),
        encoded_keys=found.keys,
        samples=torch.from_numpy(found.chosen),
        rows=torch.from_numpy(rows),
        streams=torch.from_numpy(streams),
        start=start,
        end=start + size,
    )
    return _Read(batch, damaged)


def _image_bytes(group: list[_Read]) -> int:
    return sum(read.batch.images.nbytes for read in group)
