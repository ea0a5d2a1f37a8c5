"""Samples out of shards: few byte ranges, every payload checked against its crc32, then decoded.

Shapes: M samples asked for, C channels, H height, W width.
"""

import zlib
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from ebmscale.data.decode import DECODERS, Payload
from ebmscale.data.manifest import Manifest, Shard
from ebmscale.errors import DataError, StorageError
from ebmscale.storage import Storage

WHOLE_BYTES = 8 << 20  # a shard up to this size is read as a whole and kept
KEPT_BYTES = 64 << 20  # whole shards kept, in all; the least recently used goes first
GAP_BYTES = 64 << 10  # samples nearer than this are read as one range
RANGE_BYTES = 32 << 20  # and a range ends when it is longer than this


class ShardReader:
    """Reads samples of one packed set; use it from one thread."""

    def __init__(self, storage: Storage, manifest: Manifest):
        if manifest.encoding not in DECODERS:
            raise DataError(
                f"The shards at {storage.url} are encoded as {manifest.encoding!r}, which this version cannot decode; "
                f"pack them again or use a version that reads it (this one reads {', '.join(DECODERS)})."
            )
        self._storage = storage
        self._manifest = manifest
        self._decode = DECODERS[manifest.encoding]
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def read(self, shards: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read samples in any order and from any shards.

        Args:
            shards: (M,) index of each sample's shard.
            samples: (M,) index within the shard.

        Returns:
            images (M, C, H, W) uint8, and sound (M,) bool: False where the sample is damaged (its image is zeros).

        Raises:
            DataError: a shard is missing.
        """
        shape = self._manifest.image_shape
        images = np.zeros((len(shards), *shape), np.uint8)
        sound = np.zeros(len(shards), bool)
        in_file_order = np.lexsort((samples, shards))
        borders = np.flatnonzero(np.diff(shards[in_file_order])) + 1
        for places in np.split(in_file_order, borders):
            if not len(places):
                continue
            shard = self._manifest.shards[shards[places[0]]]
            wanted = samples[places].tolist()
            for place, sample, payload in zip(places.tolist(), wanted, self._payloads(shard, wanted), strict=True):
                if zlib.crc32(payload) != shard.crc32[sample]:
                    continue
                try:
                    images[place] = self._decode(payload, shape)
                except ValueError:
                    continue
                sound[place] = True
        return images, sound

    def _payloads(self, shard: Shard, samples: list[int]) -> Iterator[Payload]:
        """The payloads of ascending samples; short or empty where the file ends before."""
        for start, end, inside in _ranges(shard, samples):
            data = memoryview(self._bytes(shard, start, end))
            for sample in inside:
                first = shard.offsets[sample] - start
                yield data[first : first + shard.sizes[sample]]

    def _bytes(self, shard: Shard, start: int, end: int) -> Payload:
        try:
            if shard.num_bytes > WHOLE_BYTES:
                return self._storage.read_range(shard.file, start, end - start)
            if shard.file not in self._kept:
                self._keep(shard.file, self._storage.read_bytes(shard.file))
        except StorageError as error:
            if self._storage.exists(shard.file):
                raise
            raise DataError(
                f"Shard {self._storage.url_of(shard.file)} is missing; copy it back or pack the set again."
            ) from error
        self._kept.move_to_end(shard.file)
        return memoryview(self._kept[shard.file])[start:end]

    def _keep(self, file: str, data: bytes) -> None:
        self._kept[file] = data
        while sum(map(len, self._kept.values())) > KEPT_BYTES:
            self._kept.popitem(last=False)


def _ranges(shard: Shard, samples: list[int]) -> Iterator[tuple[int, int, list[int]]]:
    """Byte ranges (start, end, samples inside) that cover ascending samples, neighbours joined."""
    start, end, inside = 0, 0, list[int]()
    for sample in samples:
        offset = shard.offsets[sample]
        if inside and (offset - end > GAP_BYTES or end - start > RANGE_BYTES):
            yield start, end, inside
            inside = []
        if not inside:
            start = offset
        end = offset + shard.sizes[sample]
        inside.append(sample)
    if inside:
        yield start, end, inside
