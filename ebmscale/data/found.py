"""Samples that were looked up in the indexes: what is needed to read them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ebmscale.data.shard_index import ShardIndex, decoded


@dataclass(frozen=True, eq=False)
class Found:
    """Samples, and where they are (M samples).

    Attributes:
        shards: (M,) int64 the number of the shard.
        samples: (M,) int64 the place in the shard.
        labels: (M,) int64, -1 if none.
        keys: (M,) UTF-8 bytes.
        hashes: (M,) float64, `key_hash` of each key.
        offsets: (M,) int64 byte of the shard's file at which the payload begins.
        sizes: (M,) int64 bytes of the payload.
        crc32: (M,) int64, of the payload.
    """

    shards: np.ndarray
    samples: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    hashes: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    crc32: np.ndarray

    @classmethod
    def of(cls, shard: int, index: ShardIndex, samples: np.ndarray) -> "Found":
        """Samples of one shard, by their places in it."""
        numbers = (index.offsets, index.sizes, index.crc32)
        return cls(
            np.full(len(samples), shard),
            samples,
            index.labels[samples].astype(np.int64),
            index.keys[samples],
            index.hashes[samples],
            *[column[samples].astype(np.int64) for column in numbers],
        )

    def __len__(self) -> int:
        return len(self.shards)

    def texts(self) -> list[str]:
        """The keys as text."""
        return decoded(self.keys)

    def at(self, places: np.ndarray) -> "Found":
        """Some of the samples."""
        return Found(**{name: array[places] for name, array in vars(self).items()})


def joined(parts: Sequence[Found]) -> Found:
    """The samples of several parts, at least one."""
    return Found(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})
