"""Records to shards: plain WebDataset tars and, written last, their manifest.

A sample KEY is two members side by side: KEY.bin, the raw bytes of the uint8 image in C, H, W order, and KEY.cls,
its label in ASCII (left out where there is none). Equal records give equal bytes: headers carry no time and no owner.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterator

from ebmscale.data.formats import Record, Source
from ebmscale.data.manifest import FILE, Manifest, Shard
from ebmscale.errors import DataError
from ebmscale.storage import Storage

ENCODING = "raw"
_BLOCK_BYTES = tarfile.BLOCKSIZE  # a header is one block, a payload is filled up to whole blocks


def pack(
    source: Source,
    storage: Storage,
    *,
    shard_samples: int = 4096,
    shard_bytes: int = 64 << 20,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write a source as shards; a set that is already there is returned as it is (see `packed`).

    Args:
        source: what to write; its records come part after part.
        storage: where to; existing files of the same names are replaced.
        shard_samples: a shard ends after this many samples,
        shard_bytes: or when its file reaches this many bytes, whichever comes first. One shard is held in memory.
        progress: called after every shard with (samples written, samples in all).

    Raises:
        DataError: the address holds another set, or a record does not fit the source's description.
    """
    if (already := packed(source, storage)) is not None:
        return already
    total = sum(source.counts.values())
    shards: list[Shard] = []
    num_written = 0
    for shard, data in _write_shards(source, shard_samples, shard_bytes):
        storage.publish(shard.file, data)
        shards.append(shard)
        num_written += shard.num_samples
        if progress:
            progress(num_written, total)
    if len({key for shard in shards for key in shard.keys}) != num_written:
        raise DataError(f"Records of {source.name} share a key; give every sample a key of its own.")
    manifest = Manifest(
        name=source.name,
        format=source.format,
        encoding=ENCODING,
        image_shape=source.image_shape,
        dtype=source.dtype,
        classes=source.classes,
        shards=shards,
    )
    manifest.save(storage)
    return manifest


def packed(source: Source, storage: Storage) -> Manifest | None:
    """The manifest at the address if it is this source's, None where nothing is packed there.

    Compared are the description, the number of samples of each part, and the first sample.

    Raises:
        DataError: a manifest of anything else is there.
    """
    if not storage.exists(FILE):
        return None
    manifest = Manifest.load(storage)
    same_description = (manifest.name, manifest.format, manifest.image_shape, manifest.classes, manifest.counts()) == (
        source.name,
        source.format,
        source.image_shape,
        source.classes,
        source.counts,
    )
    if same_description:
        record, shard = next(source.records()), manifest.shards[0]
        if (record.key, zlib.crc32(record.image.tobytes())) == (shard.keys[0], shard.crc32[0]):
            return manifest
    raise DataError(
        f"{storage.url} already holds another set ({manifest.name}, {sum(manifest.counts().values())} samples, "
        f"packed from {manifest.format}); pack {source.name} to another address or delete that one."
    )


def _write_shards(source: Source, shard_samples: int, shard_bytes: int) -> Iterator[tuple[Shard, bytes]]:
    """Cut the records into shards of one part each."""
    tar: _Tar | None = None
    numbers: dict[str, int] = {}  # shards begun, per part
    for record in source.records():
        _check(record, source)
        if tar and (tar.part != record.part or len(tar.keys) >= shard_samples or len(tar.data) >= shard_bytes):
            yield tar.finish()
            tar = None
        if tar is None:
            number = numbers.get(record.part, 0)
            numbers[record.part] = number + 1
            tar = _Tar(f"{source.name}-{record.part}-{number:06d}.tar", record.part)
        tar.add(record)
    if tar is None:
        raise DataError(f"{source.name} has no samples; check the address of the {source.format} files.")
    yield tar.finish()


def _check(record: Record, source: Source) -> None:
    """Refuse what would not come back as it went in; WebDataset ends a key at its first dot."""
    if "." in record.key or len(record.key) > 90 or not record.key.isascii():
        raise DataError(
            f"The key {record.key!r} of {source.name} must be ASCII, without dots, of 90 characters at most."
        )
    if record.image.shape != source.image_shape or record.image.dtype.name != source.dtype:
        raise DataError(
            f"Sample {record.key} of {source.name} is {record.image.dtype.name} {record.image.shape}, "
            f"the set is {source.dtype} {source.image_shape}; resize or convert it."
        )


class _Tar:
    """A shard being written in memory."""

    def __init__(self, file: str, part: str):
        self.file = file
        self.part = part
        self.data = bytearray()
        self.keys: list[str] = []
        self.labels: list[int] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self.crc32: list[int] = []

    def add(self, record: Record) -> None:
        payload = record.image.tobytes()
        self.keys.append(record.key)
        self.labels.append(record.label)
        self.offsets.append(self._member(f"{record.key}.bin", payload))
        self.sizes.append(len(payload))
        self.crc32.append(zlib.crc32(payload))
        if record.label >= 0:
            self._member(f"{record.key}.cls", str(record.label).encode())

    def _member(self, name: str, payload: bytes) -> int:
        """Append one file; returns the byte at which its payload begins."""
        header = tarfile.TarInfo(name)  # mtime, uid and gid are 0, owner names empty
        header.size = len(payload)
        self.data += header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
        offset = len(self.data)
        self.data += payload + bytes(-len(payload) % _BLOCK_BYTES)
        return offset

    def finish(self) -> tuple[Shard, bytes]:
        """The shard and the file's bytes, closed by two empty blocks."""
        data = bytes(self.data) + bytes(2 * _BLOCK_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        lists = (self.keys, self.labels, self.offsets, self.sizes, self.crc32)
        return Shard(self.file, self.part, len(data), digest, *lists), data
