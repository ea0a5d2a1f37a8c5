"""Write records as shards, and their manifest last. A pack that was killed continues when it is called again."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from ebmscale.data.decode import UNCOMPRESSED
from ebmscale.data.encode import ENDINGS, Encoded, choose_encoding, encode_all, encode_raw, why_left_out
from ebmscale.data.formats import Record, Source
from ebmscale.data.left_out import MOST_DAMAGED, LeftOut, Tolerance
from ebmscale.data.manifest import Manifest, SetAbout
from ebmscale.data.packed import DESCRIBED, packed_manifest
from ebmscale.data.partial import FOLDER as PARTIAL_FOLDER
from ebmscale.data.partial import Partial
from ebmscale.data.set_summary import SetSummary
from ebmscale.data.shard import IndexedShard
from ebmscale.data.shard_writer import ShardWriter
from ebmscale.data.source_record import FILE as SOURCE_FILE
from ebmscale.data.source_record import SourceRecord
from ebmscale.errors import DataError
from ebmscale.part_files import JOB_FILE
from ebmscale.storage import Storage

STEP_SAMPLES = 64  # between two reports of progress
SHARD_BYTES = 64 << 20
PARTS_FOLDER = ".parts"
"""Below a set: what several workers have done of a pack (see `pack_parts`)."""


def pack(
    source: Source,
    storage: Storage,
    *,
    encoding: str | None = None,
    shard_samples: int = 4096,
    shard_bytes: int = SHARD_BYTES,
    num_threads: int | None = None,
    max_damaged: float = MOST_DAMAGED,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write a source as shards; a set that is already there is returned as it is (see `packed_manifest`).

    Shards that an earlier, interrupted call with the same arguments finished are kept and not read again. The result
    is the same, byte for byte, as that of a call without interruption.

    Args:
        source: what to write; its records come part after part.
        storage: where the shards go; existing files of the same names are replaced.
        encoding: raw, png or jpeg; None: as `choose_encoding` chooses.
        shard_samples: a shard ends after this many samples,
        shard_bytes: or when its file reaches this many bytes, whichever comes first. One shard is held in memory.
        num_threads: that load and encode images; None: as many as there are cores.
        max_damaged: the largest share of the samples that may be left out because they cannot be read or do not fit the
            source's description. They are listed in `left_out.FILE`.
        progress: called after every shard, and every `STEP_SAMPLES` samples in it, with (samples done, samples in all).

    Raises:
        ConfigError: the encoding is unknown or cannot hold such images.
        DataError: the address holds another set, another pack writes there too, or too many samples would be left out.
    """
    if (already := packed_manifest(source, storage, encoding, num_threads=num_threads, progress=progress)) is not None:
        return already
    encoding = choose_encoding(source, encoding)
    total = sum(source.counts.values())
    record = SourceRecord.of(source)
    if storage.exists(f"{PARTS_FOLDER}/{JOB_FILE}"):
        raise DataError(
            f"{storage.url} holds an unfinished pack by several workers: run that command again, with --workers, or "
            f"delete {storage.url}."
        )
    partial = Partial(storage, pack_plan(source, record, encoding, shard_samples, shard_bytes))
    summary = SetSummary()
    report = progress or (lambda done, total: None)
    tolerance = Tolerance(source, storage, max_damaged)
    num_written = 0

    def step(num_samples: int) -> None:
        report(num_written + num_samples, total)

    limits = Limits(shard_samples, shard_bytes)
    for shard, data in _all_shards(source, partial.finished(), encoding, limits, num_threads, tolerance, step):
        if data is not None:
            if not partial.are_there():
                return _packed_meanwhile(source, storage, encoding, partial)
            storage.publish(shard.file, data)
            partial.add(shard)
        summary.add(shard)
        num_written += shard.num_samples
        report(num_written + len(tolerance.found.samples), total)
    if not num_written:
        raise DataError(f"{source.name} has no samples; check the address of the {source.format} files.")
    if not partial.are_there():
        return _packed_meanwhile(source, storage, encoding, partial)
    manifest = finish_set(source, storage, encoding, summary, record, tolerance)
    partial.remove()
    return manifest


def unfinished_pack(storage: Storage) -> str | None:
    """The folder with the notes of a pack that was begun at an address and has not ended; None if there is none."""
    first = {PARTIAL_FOLDER: "plan.json", PARTS_FOLDER: JOB_FILE}
    return next((folder for folder, file in first.items() if storage.exists(f"{folder}/{file}")), None)


def _packed_meanwhile(source: Source, storage: Storage, encoding: str, partial: Partial) -> Manifest:
    """The manifest of another process that packed the same source at the same time, and was faster.

    Raises:
        DataError: there is none, or it is of another set.
    """
    partial.remove()
    manifest = packed_manifest(source, storage, encoding)
    if manifest is None:
        raise DataError(f"{storage.url} was deleted while it was packed; run the same command again.")
    return manifest


def finish_set(
    source: Source,
    storage: Storage,
    encoding: str,
    summary: SetSummary,
    record: SourceRecord | None,
    tolerance: Tolerance,
) -> Manifest:
    """Writes what a set has beside its shards: the record of its source, the samples left out, and the manifest last.

    Raises:
        DataError: two samples share a key.
    """
    about = SetAbout(source.name, source.format, encoding, source.image_shape, source.dtype, source.classes)
    manifest = summary.manifest(storage, about)
    if record is None:
        storage.delete(SOURCE_FILE)
    else:
        record.save(storage)
    tolerance.found.save(storage)
    manifest.save(storage)
    return manifest


def pack_plan(
    source: Source, record: SourceRecord | None, encoding: str, shard_samples: int, shard_bytes: int
) -> dict[str, Any]:
    """All that the bytes of the shards depend on."""
    return {name: getattr(source, name) for name in DESCRIBED} | {
        "source": None if record is None else asdict(record),
        "encoding": encoding,
        "shard_samples": shard_samples,
        "shard_bytes": shard_bytes,
    }


class Limits(NamedTuple):
    """A shard ends after this many samples, or at this many bytes."""

    samples: int
    bytes: int


def _all_shards(
    source: Source,
    finished: Iterator[IndexedShard],
    encoding: str,
    limits: Limits,
    num_threads: int | None,
    tolerance: Tolerance,
    step: Callable[[int], None],
) -> Iterator[tuple[IndexedShard, bytes | None]]:
    """The finished shards, without bytes, then the remaining records in shards of one part each."""
    records = source.records()
    numbers: dict[str, int] = {}  # shards begun, per part
    for shard in finished:
        _skip_finished(records, shard, source, encoding, tolerance)
        numbers[shard.part] = numbers.get(shard.part, 0) + 1
        yield shard, None

    def next_file(part: str) -> str:
        number = numbers.get(part, 0)
        numbers[part] = number + 1
        return f"{source.name}-{part}-{number:06d}.tar"

    def step_in(num_samples: int) -> None:
        step(num_samples + len(tolerance.found.samples))

    samples = encode_all(records, source, encoding, num_threads)
    yield from shards_of(samples, encoding, limits, next_file, tolerance.add, step_in)


def shards_of(
    samples: Iterator[Encoded | LeftOut],
    encoding: str,
    limits: Limits,
    next_file: Callable[[str], str],
    leave_out: Callable[[LeftOut], None],
    step: Callable[[int], None] = lambda num_samples: None,
) -> Iterator[tuple[IndexedShard, bytes]]:
    """Samples as shards of one part each, with the bytes of their files.

    Args:
        samples: encoded, part after part.
        encoding: of the samples.
        limits: of a shard.
        next_file: the name of the next shard of a part.
        leave_out: called with every sample that cannot be used.
        step: called now and then with the number of samples in the shard.
    """
    writer: ShardWriter | None = None
    for sample in samples:
        if isinstance(sample, LeftOut):
            leave_out(sample)
            continue
        if writer and (
            writer.part != sample.part or writer.num_samples >= limits.samples or writer.num_bytes >= limits.bytes
        ):
            yield writer.finish()
            writer = None
        if writer is None:
            writer = ShardWriter(next_file(sample.part), sample.part, ENDINGS[encoding])
        writer.add(sample)
        if writer.num_samples % STEP_SAMPLES == 0:
            step(writer.num_samples)
    if writer is not None:
        yield writer.finish()


def _skip_finished(
    records: Iterator[Record], shard: IndexedShard, source: Source, encoding: str, tolerance: Tolerance
) -> None:
    """Skip the records of a finished shard without decoding them; they must be those of the shard.

    Keys and labels are compared, and the numbers of arrays that are stored raw. A record between them must be one that
    was left out, so it is read again.
    """
    for key, label, crc32 in zip(shard.keys, shard.labels, shard.crc32, strict=True):
        record = next(records, None)
        while record is not None and record.key != key and (reason := why_left_out(record, source)):
            tolerance.add(LeftOut.of(record, reason))
            record = next(records, None)
        same = record is not None and (record.key, record.label) == (key, label)
        if same and record is not None and encoding in UNCOMPRESSED and isinstance(record.image, np.ndarray):
            same = zlib.crc32(encode_raw(record.load())) == crc32
        if not same:
            raise DataError(
                f"The files of {source.name} are not those that shard {shard.file} was made of; "
                f"delete {tolerance.storage.url} and run this command again, or pack to another address."
            )
