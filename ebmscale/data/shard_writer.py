"""Samples to the bytes of one shard: a plain WebDataset tar, its index, and its row for the manifest.

A sample KEY is two members side by side: KEY.bin, KEY.png or KEY.jpg, the image, and KEY.cls, its label in ASCII
(left out where there is none). Equal samples give equal bytes: headers carry no time and no owner.
"""

import hashlib
import tarfile
import zlib

from ebmscale.data.encode import Encoded
from ebmscale.data.shard import IndexedShard
from ebmscale.data.shard_index import ShardIndex

_BLOCK_BYTES = tarfile.BLOCKSIZE  # a header is one block, a payload is filled up to whole blocks


class ShardWriter:
    """A shard being written in memory.

    Args:
        file: its name below the set's address.
        part: which all its samples share.
        ending: of the images' names.
    """

    def __init__(self, file: str, part: str, ending: str):
        self.file = file
        self.part = part
        self._ending = ending
        self._data = bytearray()
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._crc32: list[int] = []

    @property
    def num_samples(self) -> int:
        """Samples added so far."""
        return len(self._keys)

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return len(self._data)

    def add(self, sample: Encoded) -> None:
        """Append a sample."""
        self._keys.append(sample.key)
        self._labels.append(sample.label)
        self._offsets.append(self._member(f"{sample.key}.{self._ending}", sample.payload))
        self._sizes.append(len(sample.payload))
        self._crc32.append(zlib.crc32(sample.payload))
        if sample.label >= 0:
            self._member(f"{sample.key}.cls", str(sample.label).encode())

    def _member(self, name: str, payload: bytes) -> int:
        """Append one file; returns the byte at which its payload begins."""
        header = tarfile.TarInfo(name)  # mtime, uid and gid are 0, owner names empty
        header.size = len(payload)
        self._data += header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
        offset = len(self._data)
        self._data += payload + bytes(-len(payload) % _BLOCK_BYTES)
        return offset

    def finish(self) -> tuple[IndexedShard, bytes]:
        """The shard and the file's bytes, closed by two empty blocks."""
        data = bytes(self._data) + bytes(2 * _BLOCK_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        index = ShardIndex.of(self._keys, self._labels, self._offsets, self._sizes, self._crc32)
        return IndexedShard.of(self.file, self.part, len(data), digest, index), data
