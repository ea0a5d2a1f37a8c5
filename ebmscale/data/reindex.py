"""The indexes of a set that `pack` wrote: those of a manifest of version 1, and those that are missing or damaged."""

import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace

from ebmscale.data.encode import ENDINGS
from ebmscale.data.indexes import IndexesInMemory
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.shard import SAMPLE_BYTES, IndexedShard, Shard
from ebmscale.data.shard_index import ShardIndex
from ebmscale.data.tars import SequentialFile, tar_members
from ebmscale.errors import DataError
from ebmscale.storage import Storage

FOREIGN = "webdataset"  # the format of sets whose shards others made
LABEL_BYTES = 32
Note = Callable[[str], None]


def reindex(storage: Storage, note: Note) -> Manifest | None:
    """Writes what a packed set lacks.

    A manifest of version 1 is written anew as one of this version, with an index for each shard. Of a set of this
    version, the indexes that are missing, damaged, or of another file are made from their shards.

    Returns:
        The manifest; None if there is none, or if others made the shards.

    Raises:
        DataError: the manifest cannot be read, as it is damaged, newer, or of another program; a shard whose index is
            needed is missing, or is not the one that was packed.
    """
    if not storage.exists(FILE):
        return None
    try:
        manifest = Manifest.load(storage)
    except DataError:
        raise DataError(
            f"{storage.url_of(FILE)} is no manifest that this ebmscale reads, and is not overwritten; move it away to "
            "index the shards."
        ) from None
    if manifest.format == FOREIGN:
        return None
    is_old, rows, num_made = isinstance(manifest.indexes, IndexesInMemory), [], 0
    for number, row in enumerate(manifest.shards):
        try:
            index = manifest.index(number)
        except DataError:
            index = _read_shard(storage, manifest, row)
        else:
            if not is_old:
                rows.append(row)
                continue
        shard = IndexedShard.of(row.file, row.part, row.num_bytes, row.sha256, index)
        storage.publish(shard.row.index_file, shard.index_data)
        rows.append(shard.row)
        num_made += 1
    if num_made:
        replace(manifest, shards=rows).save(storage)
        note(f"{num_made:,} index file(s) written")
    return Manifest.load(storage)


def _read_shard(storage: Storage, manifest: Manifest, row: Shard) -> ShardIndex:
    """The index of a shard, from the shard."""
    if not storage.exists(row.file):
        raise DataError(f"Shard {storage.url_of(row.file)} is missing; copy it back or pack the set again.")
    image, keys, offsets, sizes, crc32 = ENDINGS[manifest.encoding], [], [], [], []
    labels: dict[str, int] = {}
    source = SequentialFile(storage, row.file)
    try:
        for member in tar_members(source, {image: SAMPLE_BYTES, "cls": LABEL_BYTES}):
            if member.name.field == "cls":
                labels[member.name.key] = int(member.content)
            elif member.name.field == image:
                keys.append(member.name.key)
                offsets.append(member.offset)
                sizes.append(len(member.content))
                crc32.append(zlib.crc32(member.content))
        index = ShardIndex.of(keys, [labels.get(key, -1) for key in keys], offsets, sizes, crc32)
        if source.digest.hexdigest() != row.sha256:
            raise ValueError("its sha256 differs from the manifest's")
        row.check(index, len(manifest.classes), None)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(
            f"Shard {storage.url_of(row.file)} is not the one that was packed ({error}), so it has no index; "
            "copy it again from a sound copy, or pack the set again."
        ) from error
    return index
