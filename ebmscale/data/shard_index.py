"""NAME.index.npz beside NAME.tar: where each sample of a shard lies, its label, its key, and its checksum.

It is a NumPy archive, which `numpy.load` opens. Its arrays run over the samples in the order of the shard's file:

    keys     UTF-8, unique in the set           offsets  int64, the byte at which a sample's payload begins
    labels   int32, -1 if none                  sizes    int64, bytes of the payload
    hashes   float64, see `key_hash`            crc32    uint32, of the payload

`shard` is the sha256 of the file that they describe. Shapes: n samples of the shard.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ENDING = ".index.npz"
INDEX_BYTES = 256 * 2**20
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Values of `validation_fraction` for which a manifest counts the validation samples of each shard."""
_DTYPES = {"labels": "int32", "hashes": "float64", "offsets": "int64", "sizes": "int64", "crc32": "uint32"}


def key_hash(key: str) -> float:
    """A fixed number in [0, 1) for a key (BLAKE2b), uniform over keys."""
    return (int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 11) / 2**53


def index_file(shard: str) -> str:
    """The name of the index file of a shard's file."""
    return shard.removesuffix(".tar") + ENDING


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard, in the order of its file.

    Attributes:
        keys: (n,) UTF-8 bytes.
        labels: (n,) int32 index into the classes; -1 if none.
        hashes: (n,) float64, `key_hash` of each key.
        offsets: (n,) int64, byte of the file at which the payload begins.
        sizes: (n,) int64, bytes of the payload.
        crc32: (n,) uint32, of the payload.
    """

    keys: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    crc32: np.ndarray

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        labels: Sequence[int],
        offsets: Sequence[int],
        sizes: Sequence[int],
        crc32: Sequence[int],
    ) -> "ShardIndex":
        """The index of samples that are given as lists of equal length."""
        return cls(
            np.array([key.encode() for key in keys], np.bytes_),
            np.array(labels, np.int32),
            np.array([key_hash(key) for key in keys], np.float64),
            np.array(offsets, np.int64),
            np.array(sizes, np.int64),
            np.array(crc32, np.uint32),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return sum(array.nbytes for array in vars(self).values())

    def texts(self) -> list[str]:
        """The keys as text."""
        return decoded(self.keys)

    def labels_digest(self) -> str:
        """The sha256 of the labels as a JSON list, hexadecimal."""
        return hashlib.sha256(json.dumps(self.labels.tolist()).encode()).hexdigest()

    def below(self, fractions: Sequence[float]) -> tuple[int, ...]:
        """How many hashes are below each fraction."""
        return tuple(int(np.count_nonzero(self.hashes < fraction)) for fraction in fractions)

    def to_bytes(self, sha256: str) -> bytes:
        """The index file of the shard with this sha256; equal samples give equal bytes."""
        file = io.BytesIO()
        np.savez(file, shard=np.array(sha256), **vars(self))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple["ShardIndex", str]:
        """The index, and the sha256 of the shard that it was made of; ValueError says why it cannot be read."""
        try:
            arrays = _arrays(data)
            index, sha256 = cls(**{name: arrays[name] for name in cls.__dataclass_fields__}), str(arrays["shard"])
        except KeyError as error:
            raise ValueError(f"it has no {error.args[0]}") from error
        except Exception as error:  # what a damaged archive raises has no common class
            raise ValueError(str(error).rstrip(".") or "it ends early") from error
        if any(getattr(index, name).dtype != dtype for name, dtype in _DTYPES.items()) or index.keys.dtype.kind != "S":
            raise ValueError("an array is of another type")
        if {array.shape for array in vars(index).values()} != {(len(index.keys),)}:
            raise ValueError("its arrays differ in length")
        return index, sha256


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > INDEX_BYTES:
            raise ValueError(f"it has more than {INDEX_BYTES:,} bytes")
    with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


def decoded(keys: np.ndarray) -> list[str]:
    """UTF-8 keys (n,) as text."""
    return [key.decode(errors="replace") for key in keys.tolist()]
