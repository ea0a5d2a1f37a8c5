"""Which samples belong to train, validation and test: a property of each sample's key, never of chance or order.

`test` is the official test part. `validation` is that fraction of the official train part whose keys hash lowest,
`train` is the rest. So a split does not change when a set is sharded otherwise. Shapes: N samples of the split.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from ebmscale.data.manifest import Manifest
from ebmscale.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
VALIDATION_FRACTION = 0.05


@dataclass(frozen=True)
class Selection:
    """The samples of a split, in the manifest's order.

    Attributes:
        shards: (N,) int64 index into the manifest's shards, ascending.
        samples: (N,) int64 index into the shard's samples, ascending within a shard.
        labels: (N,) int64, -1 where none.
        keys: N keys.
    """

    shards: np.ndarray
    samples: np.ndarray
    labels: np.ndarray
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)


def key_hash(key: str) -> float:
    """A fixed number in [0, 1) for a key (BLAKE2b), uniform over keys."""
    return (int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 11) / 2**53


def select(manifest: Manifest, split: str, validation_fraction: float = VALIDATION_FRACTION) -> Selection:
    """The samples of a split.

    Raises:
        ConfigError: no such split, or a fraction outside [0, 1).
        DataError: the split is empty, for instance because the set has no test part.
    """
    if split not in SPLITS:
        raise ConfigError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction is {validation_fraction}; it must be at least 0 and below 1.")
    part = "test" if split == "test" else "train"
    shards, samples, labels, keys = [], [], [], []
    for index, shard in enumerate(manifest.shards):
        if shard.part != part:
            continue
        for sample, key in enumerate(shard.keys):
            if part == "test" or (key_hash(key) < validation_fraction) == (split == "validation"):
                shards.append(index)
                samples.append(sample)
                labels.append(shard.labels[sample])
                keys.append(key)
    if not keys:
        raise DataError(_why_empty(manifest, split, validation_fraction))
    return Selection(np.array(shards), np.array(samples), np.array(labels), keys)


def _why_empty(manifest: Manifest, split: str, validation_fraction: float) -> str:
    if split == "test":
        return f"{manifest.name} has no test part; use the validation split, which is held out of train."
    return (
        f"The {split} split of {manifest.name} is empty with validation_fraction {validation_fraction}; "
        "choose another fraction or a larger set."
    )
