"""Which samples belong to train, validation and test: a property of each sample's key, never of chance or order.

`test` is the official test part. Of a set with a validation part, that part is `validation`, and the whole train part
is `train`. Of other sets `validation` is that fraction of the official train part whose keys hash lowest, and `train`
is the rest. So a split does not change when a set is sharded differently. The samples of a class that is held out as
anomalies are in no split but test (see `config.HeldOutBlock`). With `with_anomalies` the validation split holds its own
share of them, so that settings can be chosen without the test.

A split is known by its number of samples in each shard. The manifest has these numbers for the usual validation
fractions; for others, and where a class is held out, the indexes of all shards are read once.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ebmscale.config import HeldOutBlock
from ebmscale.data.found import Found, joined
from ebmscale.data.indexes import Indexes, each_index
from ebmscale.data.manifest import Manifest
from ebmscale.data.parts import PARTS
from ebmscale.data.shard import Shard
from ebmscale.data.shard_index import FRACTIONS, ShardIndex, key_hash
from ebmscale.errors import ConfigError, DataError

SPLITS = PARTS
VALIDATION_FRACTION = 0.05
POOLED_TEST_FRACTION = 0.2  # of the normal samples, in the pooled protocol
POOLED_SALT = "pooled test/"  # makes this choice independent of which samples are validation
NOTHING_HELD_OUT = HeldOutBlock()


@dataclass(frozen=True)
class Rule:
    """Which samples of a shard are in a split.

    Attributes:
        split: "train", "validation" or "test".
        fraction: see `select`.
        has_part: whether the set has a validation part.
        anomalous: the label that is held out; None if there is none.
        pooled: whether the parts are put together.
        with_anomalies: see `select`.
        without: a label whose samples are left out of every split.
    """

    split: str
    fraction: float
    has_part: bool
    anomalous: int | None
    pooled: bool
    with_anomalies: bool
    without: int | None = None

    def mask(self, part: str, index: ShardIndex) -> np.ndarray:
        """(n,) bool: whether each sample of a shard is in the split."""
        of_test = self.split == "test"
        is_anomaly = np.zeros(len(index), bool) if self.anomalous is None else index.labels == self.anomalous
        is_test = np.full(len(index), part == "test")
        if self.pooled:
            salted = np.array([key_hash(POOLED_SALT + key) for key in index.texts()], np.float64)
            is_test = is_anomaly | (salted < POOLED_TEST_FRACTION)
        is_validation = np.full(len(index), part == "validation") if self.has_part else index.hashes < self.fraction
        found = (is_test == of_test) & (is_test | (is_validation == (self.split == "validation")))
        if not self._has_anomalies:
            found &= ~is_anomaly | is_test
        return found if self.without is None else found & (index.labels != self.without)

    def count(self, shard: Shard) -> int | None:
        """How many samples of a shard are in the split; None where only its index can tell."""
        if self.pooled or self.without is not None:
            return None
        is_validation = shard.part == "validation" if self.has_part else self.split == "validation"
        if (shard.part == "test", is_validation) != (self.split == "test", self.split == "validation"):
            return 0
        if self.anomalous is not None and self.split != "test" and not self._has_anomalies:
            return None
        if self.split == "test" or self.has_part:
            return shard.num_samples
        if self.fraction not in (0, *FRACTIONS):
            return None
        held = shard.below[FRACTIONS.index(self.fraction)] if self.fraction else 0
        return held if self.split == "validation" else shard.num_samples - held

    @property
    def _has_anomalies(self) -> bool:
        """Whether samples of the held-out class that are not for the test are in the split."""
        return self.with_anomalies and self.split == "validation"


Members = Callable[[int, ShardIndex], np.ndarray]


class Split:
    """The samples of a split, numbered in the manifest's order.

    Args:
        manifest: of the set.
        counts: (num_shards,) int64 samples of each shard.
        members: the places in a shard of its samples, ascending, from the shard's number and its index.
        rule: which samples these are; None if they were chosen one by one.

    Attributes:
        counts: see above.
        ends: (num_shards,) int64, the number at which each shard's samples end.
    """

    def __init__(self, manifest: Manifest, counts: np.ndarray, members: Members, rule: Rule | None = None):
        self.manifest = manifest
        self.counts = counts
        self.ends = np.cumsum(counts)
        self.rule = rule
        self.members = members

    def __len__(self) -> int:
        return int(self.ends[-1])

    def find(self, chosen: np.ndarray | None = None, indexes: Indexes | None = None) -> Found:
        """The samples with these numbers (M,), in any order; None: all of the split.

        Args:
            chosen: numbers below the length of the split.
            indexes: reads the indexes; None: those of the manifest.
        """
        chosen = np.arange(len(self)) if chosen is None else np.asarray(chosen, np.int64)
        shards = np.searchsorted(self.ends, chosen, "right")
        by_shard = np.argsort(shards, kind="stable")
        numbers, firsts = np.unique(shards[by_shard], return_index=True)
        fetched = each_index(indexes or self.manifest.indexes, numbers.tolist())
        parts = []
        for (number, index), places in zip(fetched, np.split(by_shard, firsts[1:]), strict=True):
            start = self.ends[number] - self.counts[number]
            parts.append(Found.of(number, index, self.members(number, index)[chosen[places] - start]))
        back = np.empty_like(by_shard)
        back[by_shard] = np.arange(len(by_shard))
        return joined(parts).at(back)


def select(
    manifest: Manifest,
    split: str,
    validation_fraction: float = VALIDATION_FRACTION,
    held_out: HeldOutBlock = NOTHING_HELD_OUT,
    with_anomalies: bool = False,
) -> Split:
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
            samples have no label; an index is missing or damaged.
    """
    found = by_rule(manifest, rule_of(manifest, split, validation_fraction, held_out, with_anomalies))
    if not len(found):
        raise DataError(_why_empty(manifest, split, validation_fraction))
    return found


def rule_of(
    manifest: Manifest,
    split: str,
    validation_fraction: float,
    held_out: HeldOutBlock,
    with_anomalies: bool = False,
) -> Rule:
    """The rule of a split; see `select`."""
    if split not in SPLITS:
        raise ConfigError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction is {validation_fraction}; it must be at least 0 and below 1.")
    anomalous = class_index(manifest, held_out)
    pooled = anomalous is not None and held_out.protocol == "pooled"
    return Rule(split, validation_fraction, has_validation_part(manifest), anomalous, pooled, with_anomalies)


def by_rule(manifest: Manifest, rule: Rule) -> Split:
    """The samples that a rule admits."""

    def members(number: int, index: ShardIndex) -> np.ndarray:
        return np.flatnonzero(rule.mask(manifest.shards[number].part, index))

    return Split(manifest, _counts(manifest, rule), members, rule)


def _counts(manifest: Manifest, rule: Rule) -> np.ndarray:
    """The number of samples of each shard that a rule admits, (num_shards,) int64.

    If indexes must be read for it, all splits are counted together, and the manifest keeps the numbers.
    """
    shards = manifest.shards
    if None not in (counts := [rule.count(shard) for shard in shards]):
        return np.array(counts, np.int64)
    if rule not in manifest.counted:
        tables = {one: [one.count(shard) for shard in shards] for one in (replace(rule, split=name) for name in SPLITS)}
        unknown = [number for number in range(len(shards)) if any(table[number] is None for table in tables.values())]
        for number, index in each_index(manifest.indexes, unknown):
            for one, table in tables.items():
                table[number] = int(one.mask(shards[number].part, index).sum())
        manifest.counted.update({one: np.array(table, np.int64) for one, table in tables.items()})
    return manifest.counted[rule]


def without(split: Split, label: int) -> Split:
    """The samples of a split that do not have this label."""
    assert split.rule is not None, "of a split that `select` made"
    return by_rule(split.manifest, replace(split.rule, without=label))


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
    num_unlabelled = manifest.num_unlabelled()
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
