"""Checks whether an address already holds a source that has not changed since."""

import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np

from ebmscale.data.decode import DECODERS
from ebmscale.data.encode import encode_all, why_left_out
from ebmscale.data.formats import Record, Source
from ebmscale.data.left_out import LeftOut, LeftOutList
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.shard import IndexedShard
from ebmscale.data.source_record import SourceRecord
from ebmscale.errors import DataError, StorageError
from ebmscale.storage import Storage

DESCRIBED = ("name", "format", "image_shape", "dtype", "classes", "counts")  # of a source, what its shards depend on
CHEAP_BYTES = 256 << 20  # arrays up to this are always compared number by number

Progress = Callable[[int, int], None]


def packed_manifest(
    source: Source,
    storage: Storage,
    encoding: str | None = None,
    *,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest | None:
    """The manifest at the address if it is that of this source, None if nothing is packed there.

    First the description, the number of samples of each part, and the encoding if one is given are compared. Then the
    sizes and times of the source's files are compared with the set's record of them. If they differ, or there is no
    record, or the arrays are small, every key, label and image is compared. Sets of earlier versions have no record;
    they get one after this.

    Raises:
        DataError: a manifest of anything else is there; the text says what differs.
        ConfigError: the source does not fit the set's encoding.
    """
    if not storage.exists(FILE):
        return None
    manifest, whole = Manifest.load(storage), source
    source, left_out = LeftOutList.load(storage).split(whole)
    difference = _description(source, manifest, encoding)
    if difference is None:
        record = SourceRecord.of(whole)
        known = record is not None and record == SourceRecord.load(storage)
        if not known or _is_cheap(source):
            difference = _labels(source, manifest) or _images(source, storage, manifest, num_threads, progress)
            difference = difference or _repaired(left_out, whole)
        if difference is None and record is not None and not known:
            with suppress(StorageError):  # the set may be at a read-only place
                record.save(storage)
    if difference is not None:
        raise DataError(
            f"{storage.url} already holds another set ({manifest.name}, {sum(manifest.counts().values())} samples, "
            f"packed from {manifest.format} as {manifest.encoding}): {difference}; "
            f"pack {source.name} to another address or delete that folder."
        )
    return manifest


def _description(source: Source, manifest: Manifest, encoding: str | None) -> str | None:
    """The first thing in which the descriptions differ."""
    pairs = [(name, manifest.counts() if name == "counts" else getattr(manifest, name)) for name in DESCRIBED]
    pairs.append(("encoding", manifest.encoding))
    for name, there in pairs:
        here = encoding or manifest.encoding if name == "encoding" else getattr(source, name)
        if here != there:
            return f"its {name} is {_short(there)}, now it is {_short(here)}"
    return None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_cheap(source: Source) -> bool:
    num_bytes = sum(source.counts.values()) * math.prod(source.image_shape) * np.dtype(source.dtype).itemsize
    return num_bytes <= CHEAP_BYTES and isinstance(next(source.records()).image, np.ndarray)


def _samples(manifest: Manifest) -> Iterator[tuple[IndexedShard, int]]:
    for place, row in enumerate(manifest.shards):
        shard = IndexedShard(row, manifest.index(place))
        for number in range(shard.num_samples):
            yield shard, number


def _labels(source: Source, manifest: Manifest) -> str | None:
    """How keys, parts or labels differ."""
    num_changed, first = 0, ""
    for record, sample in itertools.zip_longest(source.records(), _samples(manifest)):
        if record is None or sample is None:
            return "it has another number of samples now"
        shard, number = sample
        if (record.key, record.part) != (shard.keys[number], shard.part):
            return f"{shard.keys[number]} of its part {shard.part} is {record.key} of part {record.part} now"
        if record.label != shard.labels[number]:
            num_changed += 1
            first = first or f"{record.key} was {shard.labels[number]}, now {record.label}"
    return f"{num_changed:,} labels differ now, first {first}" if num_changed else None


def _images(
    source: Source, storage: Storage, manifest: Manifest, num_threads: int | None, progress: Progress | None
) -> str | None:
    """The first image that differs."""
    total, done = sum(source.counts.values()), 0
    samples = encode_all(source.records(), source, manifest.encoding, num_threads)
    try:
        for sample, (shard, number) in zip(samples, _samples(manifest), strict=True):
            if isinstance(sample, LeftOut):
                return f"{sample.key} cannot be used any more"
            if zlib.crc32(sample.payload) != shard.crc32[number] and not _same_pixels(
                sample.payload, storage, manifest, shard, number
            ):
                return f"the content of {sample.key} has changed"
            done += 1
            if progress and (done % 1000 == 0 or done == total):
                progress(done, total)
    finally:
        samples.close()
    return None


def _repaired(left_out: list[Record], source: Source) -> str | None:
    """A sample that was left out of the set and can be used now."""
    usable = (record.key for record in left_out if why_left_out(record, source) is None)
    return next((f"{key} was left out, and can be used now" for key in usable), None)


def _same_pixels(payload: bytes, storage: Storage, manifest: Manifest, shard: IndexedShard, number: int) -> bool:
    """Whether a PNG holds the same pixels; versions of the PNG library compress differently."""
    if manifest.encoding != "png":
        return False
    there = storage.read_range(shard.file, int(shard.index.offsets[number]), int(shard.index.sizes[number]))
    decode, shape = DECODERS["png"], manifest.image_shape
    try:
        return np.array_equal(decode(there, shape), decode(payload, shape))
    except ValueError:
        return False
