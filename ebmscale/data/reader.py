"""Samples out of shards: a few byte ranges are requested together, and each payload is checked and decoded.

Shapes: M samples asked for, m of them in one piece, C channels, H height, W width.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from isal.isal_zlib import crc32 as crc32_of
from numpy.lib.stride_tricks import sliding_window_view

from ebmscale.data.cache import RangeCache
from ebmscale.data.decode import UNCOMPRESSED, decoder
from ebmscale.data.found import Found
from ebmscale.data.image_memory import ImageMemory
from ebmscale.data.manifest import Manifest
from ebmscale.data.shard import Shard
from ebmscale.errors import DataError, NoRangesError, StorageError
from ebmscale.storage import Range, Storage

WHOLE_BYTES = 8 << 20  # a shard up to this size is read as a whole and kept,
WHOLE_SHARE = 16  # if at least one sample in so many is wanted
KEPT_BYTES = 64 << 20  # whole shards kept, in all; the least recently used goes first
GAP_BYTES = 64 << 10  # samples nearer than this are read as one range
RANGE_BYTES = 8 << 20  # and a range ends when it is longer than this
TOGETHER_BYTES = 64 << 20  # ranges asked for together
LEAST_WRONG = 8  # samples read of a shard, all of them wrong, that show that the file is another one


@dataclass(frozen=True)
class _Piece:
    """Samples that one byte range of a shard covers.

    Attributes:
        shard: theirs.
        range: what to read.
        places: (m,) their positions among the requested samples.
        crc32: (m,) of the payload.
        offsets: (m,) first byte of the payload within the range.
        sizes: (m,) bytes of the payload.
    """

    shard: Shard
    range: Range
    places: np.ndarray
    crc32: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


class ShardReader:
    """Reads samples of one set of shards, through a cache if there is one; use it from one thread.

    Raises:
        DataError: this version has no decoder for the set's encoding.
    """

    def __init__(self, storage: Storage, manifest: Manifest, cache: RangeCache | None = None):
        self._decoder = decoder(manifest.encoding, manifest.dtype)
        self._storage = storage
        self._manifest = manifest
        self._cache = cache
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._in_folder = cache is None and storage.local_path() is not None
        self._image_memory = ImageMemory()
        self._range_memory = memoryview(b"")  # for one range of a file in a folder
        self._whole_share: float = WHOLE_SHARE

    def read(self, samples: Found) -> tuple[np.ndarray, np.ndarray]:
        """Read samples in any order and from any shards.

        Args:
            samples: M of them.

        Returns:
            images (M, C, H, W) of the manifest's dtype, and sound (M,) bool: False if the sample is damaged (its
            image is zeros).

        Raises:
            DataError: a shard is missing, or is another file than the one that was indexed.
            StorageError: the storage fails.
        """
        images = self._image_memory.take((len(samples), *self._manifest.image_shape), self._manifest.dtype)
        sound = np.zeros(len(samples), bool)
        fill = self._copy if self._manifest.encoding in UNCOMPRESSED else self._decode
        wrong: Counter[str] = Counter()  # of each file, the samples whose bytes are others
        for pieces in _together(self._pieces(samples)):
            for piece, found in zip(pieces, self._fetch(pieces), strict=True):
                data = self._read_again(found) if isinstance(found, Range) else found
                fill(piece, data, images, sound)
                if not sound[piece.places].all():
                    wrong[piece.shard.file] += int((piece.offsets[~sound[piece.places]] < len(data)).sum())
                    if self._cache is not None:
                        self._cache.forget(piece.range)
        images[~sound] = 0
        self._check_replaced(samples, sound, wrong)
        return images, sound

    def _check_replaced(self, samples: Found, sound: np.ndarray, wrong: Counter[str]) -> None:
        """DataError if nothing of what was read of a shard is what its index says."""
        right = {self._manifest.shards[number].file for number in np.unique(samples.shards[sound]).tolist()}
        for file, count in wrong.items():
            if file not in right and count >= LEAST_WRONG:
                raise DataError(
                    f"Shard {self._storage.url_of(file)} is not the one that its index describes (none of {count} "
                    f"samples has the checksum that is noted); copy it back, or pack or index the set again."
                )

    def _pieces(self, samples: Found) -> Iterator[_Piece]:
        """The samples in the order of files and offsets, neighbours joined."""
        in_file_order = np.lexsort((samples.offsets, samples.shards))
        borders = np.flatnonzero(np.diff(samples.shards[in_file_order])) + 1
        for places in np.split(in_file_order, borders) if len(samples) else []:
            shard = self._manifest.shards[samples.shards[places[0]]]
            offsets, sizes, crc32 = samples.offsets[places], samples.sizes[places], samples.crc32[places]
            for begin, end in _cuts(offsets, offsets + sizes):
                start = int(offsets[begin])
                span = Range(shard.file, start, int(offsets[end - 1] + sizes[end - 1]) - start)
                within = slice(begin, end)
                yield _Piece(shard, span, places[within], crc32[within], offsets[within] - start, sizes[within])

    def _fetch(self, pieces: list[_Piece]) -> list[memoryview | Range]:
        """The bytes of each piece's range; fewer if the file ends before. In a folder the range, to be read when used.

        From a server that sends whole files only, all small shards are read as a whole.
        """
        try:
            return self._fetch_parts(pieces)
        except NoRangesError:
            if any(piece.shard.num_bytes > WHOLE_BYTES for piece in pieces):
                raise
            self._whole_share = math.inf
            return self._fetch_parts(pieces)

    def _fetch_parts(self, pieces: list[_Piece]) -> list[memoryview | Range]:
        wanted: Counter[str] = Counter()
        for piece in pieces:
            wanted[piece.shard.file] += len(piece.places)
        whole = {
            piece.shard.file: piece.shard
            for piece in pieces
            if piece.shard.file in self._kept
            or (
                piece.shard.num_bytes <= WHOLE_BYTES
                and piece.shard.num_samples <= self._whole_share * wanted[piece.shard.file]
            )
        }
        fresh = [Range(file, 0, shard.num_bytes) for file, shard in whole.items() if file not in self._kept]
        ranges = [piece.range for piece in pieces if piece.shard.file not in whole and not self._in_folder]
        answers = self._read([*fresh, *ranges])
        self._kept.update(zip((one.path for one in fresh), answers, strict=False))
        rest = iter(answers[len(fresh) :])
        found: list[memoryview | Range] = []
        for piece in pieces:
            path, start, length = piece.range
            if path in whole:
                self._kept.move_to_end(path)
                found.append(memoryview(self._kept[path])[start : start + length])
            elif self._in_folder:
                found.append(piece.range)
            else:
                found.append(memoryview(next(rest)))
        while sum(map(len, self._kept.values())) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return found

    def _read(self, ranges: list[Range]) -> list[bytes]:
        if not ranges:
            return []
        try:
            return (self._storage if self._cache is None else self._cache).read_ranges(ranges)
        except StorageError as error:
            self._check_present(ranges, error)
            raise

    def _read_again(self, one: Range) -> memoryview:
        """A range of a local file, in the memory of the range before."""
        if len(self._range_memory) < one.length:
            self._range_memory = np.empty(max(one.length, RANGE_BYTES), np.uint8).data
        memory = self._range_memory[: one.length]
        try:
            return memory[: self._storage.read_into(one.path, one.start, memory)]
        except StorageError as error:
            self._check_present([one], error)
            raise

    def _check_present(self, ranges: list[Range], error: StorageError) -> None:
        for path in dict.fromkeys(one.path for one in ranges):
            if not self._storage.exists(path):
                raise DataError(
                    f"Shard {self._storage.url_of(path)} is missing; copy it back or pack the set again."
                ) from error

    def _copy(self, piece: _Piece, data: memoryview, images: np.ndarray, sound: np.ndarray) -> None:
        """Raw payloads, all of a piece at once."""
        flat = images.reshape(len(images), -1).view(np.uint8)
        size = flat.shape[1]
        fits = (piece.sizes == size) & (piece.offsets + size <= len(data))
        if not fits.any():
            return
        rows = _payloads(data, piece.offsets[fits], size)
        intact = np.fromiter(map(crc32_of, rows), np.int64, len(rows)) == piece.crc32[fits]
        places = piece.places[fits]
        if not intact.all():
            places, rows = places[intact], rows[intact]
        flat[_as_slice(places)] = rows
        sound[places] = True

    def _decode(self, piece: _Piece, data: memoryview, images: np.ndarray, sound: np.ndarray) -> None:
        """Payloads of any encoding, one by one."""
        shape = self._manifest.image_shape
        columns = (piece.places, piece.crc32, piece.offsets, piece.sizes)
        for place, crc32, offset, size in zip(*(column.tolist() for column in columns), strict=True):
            payload = data[offset : offset + size]
            if crc32_of(payload) != crc32:
                continue
            try:
                images[place] = self._decoder(payload, shape)
            except ValueError:
                continue
            sound[place] = True


def _payloads(data: memoryview, offsets: np.ndarray, size: int) -> np.ndarray:
    """The bytes (m, size) at ascending offsets (m,); of evenly spaced ones a view."""
    evenly = _as_slice(offsets)
    if isinstance(evenly, slice):
        shape = (len(offsets), size)
        return np.ndarray(shape, np.uint8, data, offset=evenly.start, strides=(evenly.step, 1))
    return sliding_window_view(np.frombuffer(data, np.uint8), size)[evenly]


def _as_slice(numbers: np.ndarray) -> np.ndarray | slice:
    """Ascending numbers that are evenly spaced as a slice, which NumPy copies faster than single rows."""
    if len(numbers) < 2:
        return numbers
    step = int(numbers[1] - numbers[0])
    if step < 1 or (np.diff(numbers) != step).any():
        return numbers
    return slice(int(numbers[0]), int(numbers[-1]) + 1, step)


def _cuts(starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Slices of ascending payloads that are read as one range: small gaps are read too, long ranges are cut."""
    joined = np.concatenate([[0], np.flatnonzero(starts[1:] - ends[:-1] > GAP_BYTES) + 1, [len(starts)]])
    for begin, end in pairwise(joined.tolist()):
        number = (ends[begin:end] - starts[begin]) // RANGE_BYTES
        inner = begin + np.flatnonzero(np.diff(number)) + 1
        borders = [begin, *inner.tolist(), end]
        yield from pairwise(borders)


def _together(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces in groups whose ranges are `TOGETHER_BYTES` long in all, or one piece more."""
    group: list[_Piece] = []
    num_bytes = 0
    for piece in pieces:
        group.append(piece)
        num_bytes += piece.range.length
        if num_bytes >= TOGETHER_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group
