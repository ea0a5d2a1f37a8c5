"""A pack in parts, which several workers share: each writes the shards of a range of the source.

A shard's name tells its range, so the set has the samples of a pack by one process in the same order. Its shards differ
from those only where samples were left out, or where shards reach their limit of bytes.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ebmscale.address import Address
from ebmscale.data.encode import choose_encoding, encode_all
from ebmscale.data.formats import Record, Source, open_source
from ebmscale.data.left_out import LeftOut, Tolerance
from ebmscale.data.make_test_part import with_test_part
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import PARTS_FOLDER, SHARD_BYTES, Limits, finish_set, pack_plan, shards_of
from ebmscale.data.partial import FOLDER as PARTIAL_FOLDER
from ebmscale.data.set_summary import SetSummary
from ebmscale.data.shard import IndexedShard, Shard
from ebmscale.data.shard_index import ShardIndex
from ebmscale.data.source_record import SourceRecord
from ebmscale.errors import DataError
from ebmscale.part_files import PartFiles, part_size
from ebmscale.storage import Storage
from ebmscale.stored import read_document

MOST_PARTS = 4096


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened, as a value that can be sent to another process; see `formats.open_source`.

    Attributes:
        format: its name.
        src: where its files are.
        size: of images, if they are resized.
        grey: whether they have one channel.
        attribute: that becomes the label.
        test_fraction: share of the train samples that becomes the test part.
    """

    format: str
    src: str
    size: int | None = None
    grey: bool = False
    attribute: str | None = None
    test_fraction: float | None = None

    def open(self) -> Source:
        """The source.

        Raises:
            ConfigError: there is no such format, or it does not take these options.
            DataError: files are missing, damaged or of another form.
        """
        source = open_source(self.format, self.src, size=self.size, grey=self.grey, attribute=self.attribute)
        return source if self.test_fraction is None else with_test_part(source, self.test_fraction)

    @property
    def absolute(self) -> "SourceOptions":
        """The same from any working directory."""
        return self if self.format == "digits" else SourceOptions(**vars(self) | {"src": Address.parse(self.src).real})


class Stretch(NamedTuple):
    """A range of the source's records that becomes one shard, or more where it has many bytes.

    Attributes:
        part: of the set.
        number: of the shard within the part.
        first: record of the source, counted from 0.
        num: of records.
    """

    part: str
    number: int
    first: int
    num: int


class PartNote(NamedTuple):
    """What a part of the job has written: its shards, and the samples that were left out."""

    shards: list[Shard]
    left_out: list[LeftOut]


@dataclass(frozen=True)
class PackJob:
    """A pack as a job in parts (see `runtime.part_job.PartedJob`).

    Attributes:
        options: open the source.
        storage: of the set.
        encoding: of the samples.
        limits: of a shard.
        counts: records of each part of the set, in the order in which they come.
        num_threads: of a worker, that load and encode images.
        max_damaged: the largest share of the samples that may be left out.
    """

    options: SourceOptions
    storage: Storage
    encoding: str
    limits: Limits
    counts: tuple[tuple[str, int], ...]
    num_threads: int
    max_damaged: float

    @classmethod
    def of(
        cls,
        options: SourceOptions,
        source: Source,
        storage: Storage,
        *,
        encoding: str | None,
        shard_samples: int,
        num_threads: int,
        max_damaged: float,
        shard_bytes: int = SHARD_BYTES,
    ) -> "PackJob":
        """The job, begun at the address of the set or continued there.

        Raises:
            ConfigError: the encoding does not fit, or another set is being packed there.
            DataError: one process has begun a pack there.
        """
        if storage.exists(f"{PARTIAL_FOLDER}/plan.json"):
            raise DataError(
                f"{storage.url} holds an unfinished pack by one process: run that command again, without --workers, or "
                f"delete {storage.url}."
            )
        encoding = choose_encoding(source, encoding)
        limits, counts = Limits(shard_samples, shard_bytes), tuple(source.counts.items())
        job = cls(options.absolute, storage, encoding, limits, counts, num_threads, max_damaged)
        job.files.begin(pack_plan(source, SourceRecord.of(source), encoding, *limits))
        return job

    @property
    def files(self) -> PartFiles:
        """Notes of the parts that are done."""
        return PartFiles(self.storage.child(PARTS_FOLDER), ".json")

    @property
    def num_parts(self) -> int:
        """The number of parts; each has several stretches where there are very many."""
        return -(-self._num_stretches // part_size(self._num_stretches, MOST_PARTS))

    def stretches(self, part: int) -> list[Stretch]:
        """The stretches of a part of the job, in their order."""
        size = part_size(self._num_stretches, MOST_PARTS)
        return [self._stretch(at) for at in range(part * size, min((part + 1) * size, self._num_stretches))]

    @property
    def _num_stretches(self) -> int:
        return sum(-(-num // self.limits.samples) for _, num in self.counts)

    def _stretch(self, at: int) -> Stretch:
        """The stretch number `at` of the whole source."""
        first = 0
        for name, num in self.counts:
            here = -(-num // self.limits.samples)
            if at < here:
                start = at * self.limits.samples
                return Stretch(name, at, first + start, min(self.limits.samples, num - start))
            first, at = first + num, at - here
        raise IndexError(at)

    def done(self) -> set[int]:
        """The parts that are done."""
        return self.files.done()

    def open(self) -> Callable[[int], None]:
        """What packs a part, with the source opened.

        Raises:
            DataError: the source has other samples than where the job was begun.
        """
        source = self.options.open()
        if tuple(source.counts.items()) != self.counts:
            raise DataError(
                f"{source.name} has other samples than when the pack began; give every worker the same files."
            )
        records = _Records(source)

        def pack_part(part: int) -> None:
            note = PartNote([], [])
            for stretch in self.stretches(part):
                self._pack(source, stretch, records.read(stretch.first, stretch.num), note)
            content = {
                "shards": [asdict(row) for row in note.shards],
                "left_out": [asdict(one) for one in note.left_out],
            }
            self.files.write(part, json.dumps(content).encode())

        return pack_part

    def _pack(self, source: Source, stretch: Stretch, records: Iterator[Record], note: PartNote) -> None:
        """Writes the shards of a stretch and their indexes, and notes them.

        Raises:
            DataError: this stretch alone has too many samples that cannot be used.
        """
        names = (f"{source.name}-{stretch.part}-{stretch.number:06d}{more}.tar" for more in _more())
        tolerance = Tolerance(source, self.storage, self.max_damaged)
        samples = encode_all(records, source, self.encoding, self.num_threads)
        for shard, data in shards_of(samples, self.encoding, self.limits, lambda _: next(names), tolerance.add):
            self.storage.publish(shard.file, data)
            self.storage.publish(shard.row.index_file, shard.index_data)
            note.shards.append(shard.row)
        note.left_out.extend(tolerance.found.samples)

    def finish(self, source: Source) -> Manifest:
        """Writes the manifest, after all parts are done.

        Raises:
            DataError: there are no samples, two share a key, or too many were left out.
        """
        summary, tolerance = SetSummary(), Tolerance(source, self.storage, self.max_damaged)
        for part in range(self.num_parts):
            note = read_document(self.files.storage, self.files.name(part), PartNote, DataError)
            for row in note.shards:
                index, _ = ShardIndex.from_bytes(self.storage.read_bytes(row.index_file))
                summary.add(IndexedShard(row, index))
            for one in note.left_out:
                tolerance.add(one)
        if not summary.shards:
            raise DataError(f"{source.name} has no samples; check the address of the {source.format} files.")
        manifest = finish_set(source, self.storage, self.encoding, summary, SourceRecord.of(source), tolerance)
        self.files.remove()
        return manifest


class _Records:
    """The records of a source, read in ranges; a range that begins after the last one costs no new start."""

    def __init__(self, source: Source):
        self._source, self._at = source, 0
        self._rest = source.records()

    def read(self, first: int, num: int) -> Iterator[Record]:
        """Records first, ..., first + num - 1, which must be read to their end."""
        if first < self._at:
            self._rest, self._at = self._source.records(), 0
        skipped, self._at = first - self._at, first + num
        return itertools.islice(self._rest, skipped, skipped + num)


def _more() -> Iterator[str]:
    """What the names of the shards of one stretch end with: nothing, -1, -2, ..."""
    return itertools.chain([""], (f"-{number}" for number in itertools.count(1)))
