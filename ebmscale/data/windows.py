"""The windows of a rank's streams: read together, checked once, and kept until their last sample has been served.

The samples of a read lie in memory in the order of the shards' files, so that neighbours are copied at once. An array
beside them has the shuffled order.

Shapes: B rows of a batch, M samples of a read, C channels, H height, W width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ebmscale.data.found import Found
from ebmscale.data.image_memory import ImageMemory
from ebmscale.data.indexes import Indexes
from ebmscale.data.order import SampleOrder
from ebmscale.data.reader import ShardReader
from ebmscale.data.split import Split

WINDOW_BYTES = 160 << 20  # of the windows of all streams, in memory
FIRST_BATCHES = 2
"""From a local folder the first read has the samples of so many batches. So the first batch waits for few samples."""


class Rows(NamedTuple):
    """The samples of the rows of a batch.

    Attributes:
        chosen: (B,) int64 number in the split.
        labels: (B,) int64, -1 if none.
        keys: (B,) UTF-8 bytes.
        images: (B, C, H, W) of the manifest's dtype.
        sound: (B,) bool, False if the sample is damaged.
    """

    chosen: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    images: np.ndarray
    sound: np.ndarray

    def at(self, which: np.ndarray | slice) -> "Rows":
        """Some of the rows."""
        return Rows(*(column[which] for column in self))


@dataclass(frozen=True, eq=False)
class _Slab:
    """Samples of several windows that were read together.

    Attributes:
        chosen: (M,) number in the split, ascending.
        found: (M,) where they are.
        images: (M, C, H, W).
        sound: (M,) bool.
        served: (M,) for each sample in the order of the windows, its place in the arrays above.
        memory: for the images of batches.
    """

    chosen: np.ndarray
    found: Found
    images: np.ndarray
    sound: np.ndarray
    served: np.ndarray
    memory: ImageMemory

    def rows(self, at: np.ndarray) -> Rows:
        """Samples by their numbers in the order of the windows."""
        place = self.served[at]
        images = self.memory.take((len(place), *self.images.shape[1:]), self.images.dtype)
        self.images.take(place, axis=0, out=images, mode="clip")  # with another mode NumPy would copy once more
        return Rows(self.chosen[place], self.found.labels[place], self.found.keys[place], images, self.sound[place])


class _Piece(NamedTuple):
    """A piece of a window that rows of a batch need, from place `first` of the piece to `end - 1`."""

    number: int  # unique in the run
    stream: int
    epoch: int
    window: int
    piece: int
    first: int
    end: int


class _Held:
    """For each stream the piece that it reads now: its places `first` to `end - 1`, in a slab from `shift + first` on.

    Each is an array (num_streams,); `slab` is a number of `slabs`.
    """

    def __init__(self, num_streams: int):
        self.number = np.full(num_streams, -1)
        self.first, self.end, self.shift, self.slab = np.zeros((4, num_streams), np.int64)
        self.slabs: dict[int, _Slab] = {}

    def has(self, numbers: np.ndarray, streams: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Whether each row's sample is held, (B,) bool."""
        same = self.number[streams] == numbers
        return same & (self.first[streams] <= places) & (places < self.end[streams])

    def rows(self, streams: np.ndarray, places: np.ndarray) -> Rows:
        """The samples of rows that are held."""
        at = self.shift[streams] + places
        slab_of_row = self.slab[streams]
        used = list(dict.fromkeys(slab_of_row.tolist()))
        if len(used) == 1:
            return self.slabs[used[0]].rows(at)
        rows = [np.flatnonzero(slab_of_row == slab) for slab in used]
        return _in_order(rows, [self.slabs[slab].rows(at[which]) for slab, which in zip(used, rows, strict=True)])

    def take(self, pieces: list[_Piece], lengths: np.ndarray, shifts: np.ndarray, slab: _Slab) -> None:
        """Holds pieces that were read together, of each so many samples from its first place on."""
        number = max(self.slabs, default=-1) + 1
        self.slabs[number] = slab
        for piece, length, shift in zip(pieces, lengths.tolist(), shifts.tolist(), strict=True):
            one = piece.stream
            self.number[one], self.slab[one], self.shift[one] = piece.number, number, shift
            self.first[one], self.end[one] = piece.first, piece.first + length
        used = set(self.slab[self.number >= 0].tolist())
        self.slabs = {number: slab for number, slab in self.slabs.items() if number in used}


class Windows:
    """Serves the rows of batches in ascending order of the position, from one thread.

    The memory holds a window of each owned stream, or a piece of it where all windows have more than `WINDOW_BYTES`.

    Args:
        split: the samples.
        order: in which they are served.
        indexes: of the shards.
        reader: of the shards.
        num_owned: streams of this rank.
        from_folder: whether the shards are in a folder of this machine.
    """

    def __init__(
        self, split: Split, order: SampleOrder, indexes: Indexes, reader: ShardReader, num_owned: int, from_folder: bool
    ):
        self._split, self._order = split, order
        self._indexes, self._reader = indexes, reader
        self._from_folder = from_folder
        self._memory = ImageMemory()
        most = max(WINDOW_BYTES // (max(num_owned, 1) * split.manifest.sample_bytes), 1)
        self._piece = min(most, order.window_size)
        self.forget()

    def forget(self) -> None:
        """The next rows may be at any position."""
        self._held = _Held(self._order.num_streams)

    def rows(self, epochs: np.ndarray, streams: np.ndarray, offsets: np.ndarray) -> Rows:
        """The samples at places of `assign.locate`, each (B,); those of a stream in ascending order.

        Raises:
            DataError: a shard or an index is missing or damaged.
        """
        order = self._order
        windows, places = np.divmod(offsets, order.window_size)
        pieces, places = np.divmod(places, self._piece)
        num_windows = order.num_samples // order.num_streams // order.window_size + 1
        num_pieces = -(-order.window_size // self._piece)
        numbers = ((epochs * num_windows + windows) * num_pieces + pieces) * order.num_streams + streams
        if not len(numbers):
            return self._nothing()
        held = self._held.has(numbers, streams, places)
        if held.all():
            return self._held.rows(streams, places)
        return self._read(numbers, np.stack([streams, epochs, windows, pieces, places]), held)

    def _read(self, numbers: np.ndarray, columns: np.ndarray, held: np.ndarray) -> Rows:
        """The rows of a batch of which some are not held; all missing pieces are read together."""
        streams, _, _, _, places = columns
        unique, firsts, which = np.unique(numbers, return_index=True, return_inverse=True)
        ends = np.zeros(len(unique), np.int64)
        np.maximum.at(ends, which, places + 1)
        missing = np.unique(which[~held])
        needed = np.vstack([unique, columns[:, firsts], ends])[:, missing]
        pieces = [_Piece(*column) for column in needed.T.tolist()]
        samples = [self._samples(piece) for piece in pieces]
        slab = self._slab(np.concatenate(samples))
        lengths = np.array([len(part) for part in samples])
        shifts = np.cumsum(lengths) - lengths - [piece.first for piece in pieces]
        shift_of = np.zeros(len(unique), np.int64)
        shift_of[missing] = shifts
        of_missing = np.isin(which, missing)
        old, new = np.flatnonzero(~of_missing), np.flatnonzero(of_missing)
        parts, rows = [slab.rows(shift_of[which[new]] + places[new])], [new]
        if len(old):
            parts, rows = [*parts, self._held.rows(streams[old], places[old])], [*rows, old]
        self._held.take(pieces, lengths, shifts, slab)
        return _in_order(rows, parts)

    def _samples(self, piece: _Piece) -> np.ndarray:
        """The samples that are read of a piece, in the order served."""
        start, end = piece.piece * self._piece, self._piece
        if self._from_folder and self._held.number[piece.stream] < 0:
            end = min(piece.first + FIRST_BATCHES * (piece.end - piece.first), end)
        return self._order.window(piece.epoch, piece.stream, piece.window)[start + piece.first : start + end]

    def _slab(self, chosen: np.ndarray) -> _Slab:
        in_file_order = np.argsort(chosen)
        served = np.empty_like(in_file_order)
        served[in_file_order] = np.arange(len(chosen))
        chosen = chosen[in_file_order]
        found = self._split.find(chosen, self._indexes)
        return _Slab(chosen, found, *self._reader.read(found), served, self._memory)

    def _nothing(self) -> Rows:
        none = np.empty(0, np.int64)
        images = np.empty((0, *self._split.manifest.image_shape), self._split.manifest.dtype)
        return Rows(none, none, np.empty(0, "S1"), images, np.empty(0, bool))


def _in_order(rows: list[np.ndarray], parts: list[Rows]) -> Rows:
    """Parts of a batch whose rows have these numbers."""
    together = Rows(*map(np.concatenate, zip(*parts, strict=True)))
    return together.at(np.argsort(np.concatenate(rows)))
