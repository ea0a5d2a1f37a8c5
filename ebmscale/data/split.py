"""Which samples belong to train, validation and test: a property of each sample's key, never of chance or order.

`test` is the official test part. Of a set with a validation part, that part is `validation`, and the whole train part
is `train`. Of other sets `validation` is that fraction of the official train part whose keys hash lowest, and `train`
is the rest. So a split does not change when a set is sharded differently. The samples of a class that is held out as
anomalies are in no split but test (see `config.HeldOutBlock`). With `with_anomalies` the validation split holds its own
share of them, so that settings can be chosen without the test. Shapes: N samples of the split.
"""

import difflib
import hashlib
from dataclasses import dataclass

import numpy as np

from ebmscale.config import HeldOutBlock
from ebmscale.data.manifest import Manifest
from ebmscale.data.parts import PARTS
from ebmscale.errors import ConfigError, DataError

SPLITS = PARTS
VALIDATION_FRACTION = 0.05
POOLED_TEST_FRACTION = 0.2  # of the normal samples, in the pooled protocol
POOLED_SALT = "pooled test/"  # makes this choice independent of which samples are validation
NOTHING_HELD_OUT = HeldOutBlock()


@dataclass(frozen=True)
class Selection:
    """The samples of a split, in the manifest's order.

    Attributes:
        shards: (N,) int64 index into the manifest's shards, ascending.
        samples: (N,) int64 index into the shard's samples, ascending within a shard.
        labels: (N,) int64, -1 if none.
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


def select(
    manifest: Manifest,
    split: str,
    validation_fraction: float = VALIDATION_FRACTION,
    held_out: HeldOutBlock = NOTHING_HELD_OUT,
    with_anomalies: bool = False,
) -> Selection:
    """The samples of a split.

    Args:
        manifest: of the set.
        split: "train", "validation" or "test".
        validation_fraction: share of the samples to train on that is validation; not used if the set has a validation
            part.
        held_out: a class that is never trained on.
        with_anomalies: whether validation has samples of it, in the official protocol; the pooled one has all in test.

    Raises:
        ConfigError: no such split or class, or a fraction outside [0, 1).
        DataError: the split is empty, for instance because the set has no test part; a class is to be held out and
            samples have no label.
    """
    if split not in SPLITS:
        raise ConfigError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction is {validation_fraction}; it must be at least 0 and below 1.")
    anomalous = class_index(manifest, held_out)
    pooled = anomalous is not None and held_out.protocol == "pooled"
    has_part = has_validation_part(manifest)
    shards, samples, labels, keys = [], [], [], []
    for index, shard in enumerate(manifest.shards):
        if not pooled and (shard.part == "test") != (split == "test"):
            continue
        for sample, (key, label) in enumerate(zip(shard.keys, shard.labels, strict=True)):
            is_anomaly = label == anomalous
            is_test = is_anomaly or key_hash(POOLED_SALT + key) < POOLED_TEST_FRACTION if pooled else split == "test"
            left_out = is_anomaly and not is_test and not (with_anomalies and split == "validation")
            if is_test != (split == "test") or left_out:
                continue
            is_validation = shard.part == "validation" if has_part else key_hash(key) < validation_fraction
            if is_test or is_validation == (split == "validation"):
                shards.append(index)
                samples.append(sample)
                labels.append(label)
                keys.append(key)
    if not keys:
        raise DataError(_why_empty(manifest, split, validation_fraction))
    return Selection(np.array(shards), np.array(samples), np.array(labels), keys)


def has_validation_part(manifest: Manifest) -> bool:
    """Whether the set has a validation part, so that no validation samples are taken from its train part."""
    return any(shard.part == "validation" for shard in manifest.shards)


def class_index(manifest: Manifest, held_out: HeldOutBlock) -> int | None:
    """The label of the class that is held out, an index into the manifest's classes; None if none is.

    Raises:
        ConfigError: the set has no such class.
        DataError: samples have no label, so that those of the class are not known.
    """
    if held_out.label is None:
        return None
    num_unlabelled = sum(label < 0 for shard in manifest.shards for label in shard.labels)
    if num_unlabelled or not manifest.classes:
        raise DataError(
            f"{num_unlabelled:,} samples of {manifest.name} have no label, so its class {held_out.label!r} cannot be "
            "held out; pack a labelled set, or leave out data.held_out.label."
        )
    if held_out.label not in manifest.classes:
        match = difflib.get_close_matches(held_out.label, manifest.classes, n=1, cutoff=0.4)
        known = f"did you mean {match[0]!r}?" if match else f"choose one of {', '.join(manifest.classes)}."
        raise ConfigError(f"data.held_out.label: {manifest.name} has no class {held_out.label!r}; {known}")
    return manifest.classes.index(held_out.label)


def _why_empty(manifest: Manifest, split: str, validation_fraction: float) -> str:
    if split == "test":
        return f"{manifest.name} has no test part; use the validation split, which is held out of train."
    if has_validation_part(manifest):
        return f"The {split} split of {manifest.name} is empty; its parts are {manifest.counts()}."
    return (
        f"The {split} split of {manifest.name} is empty with validation_fraction {validation_fraction}; "
        "choose another fraction or a larger set."
    )
