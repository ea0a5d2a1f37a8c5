"""Chooses samples of a split by the hashes of their keys: always the same ones, and unrelated to how the set is sorted.

Shapes: M samples.
"""

import numpy as np

from ebmscale.data.found import Found, joined
from ebmscale.data.indexes import each_index
from ebmscale.data.lowest import LowSample
from ebmscale.data.manifest import Manifest
from ebmscale.data.shard_index import ShardIndex
from ebmscale.data.split import Split, without
from ebmscale.errors import DataError


def select_all(manifest: Manifest) -> Split:
    """Every sample of a set, of all its parts.

    Raises:
        DataError: there is none.
    """
    counts = np.array([shard.num_samples for shard in manifest.shards], np.int64)
    if not counts.sum():
        raise DataError(f"{manifest.name} is empty; give a set that has samples.")
    return Split(manifest, counts, lambda number, index: np.arange(len(index)))


def take(split: Split, limit: int | None, without_label: int | None = None) -> Split:
    """At most `limit` samples of a split, without those of one label.

    The samples whose keys hash lowest are taken, as they represent the whole.
    """
    split = split if without_label is None else without(split, without_label)
    if limit is None or limit >= len(split):
        return split
    chosen = lowest(split, limit)
    by_shard = {number: np.sort(chosen.samples[chosen.shards == number]) for number in np.unique(chosen.shards)}
    counts = np.bincount(chosen.shards, minlength=len(split.counts))
    return Split(split.manifest, counts, lambda number, index: by_shard[number])


def lowest(split: Split, limit: int | None) -> Found:
    """The `limit` samples of a split whose keys hash lowest, or all of them, the lowest first.

    Few of them are in the manifest. For more, the indexes of all shards are read.
    """
    limit = len(split) if limit is None else min(limit, len(split))
    known = _in_manifest(split, limit)
    return _in_indexes(split, limit) if known is None else known


def _in_manifest(split: Split, limit: int) -> Found | None:
    """The lowest samples, if the manifest is sure to have them."""
    if split.rule is None or not limit:
        return None
    parts, bound, manifest = [], 1.0, split.manifest
    sizes = manifest.counts()
    for part, samples in manifest.lowest.items():
        if not any(split.counts[n] for n, shard in enumerate(manifest.shards) if shard.part == part) or not samples:
            continue
        index = _as_index(samples)
        chosen = np.flatnonzero(split.rule.mask(part, index))
        found = Found.of(0, index, chosen)
        places = np.array([(one.shard, one.sample) for one in samples], np.int64)[chosen]
        parts.append(Found(**vars(found) | {"shards": places[:, 0], "samples": places[:, 1]}))
        if len(samples) < sizes[part]:  # what is not listed hashes higher than what is
            bound = min(bound, float(index.hashes[-1]))
    if sum(map(len, parts)) < limit:
        return None
    whole = joined(parts)
    whole = whole.at(_by_hash(whole)[:limit])
    return whole if whole.hashes[-1] <= bound else None


def _as_index(samples: list[LowSample]) -> ShardIndex:
    _, _, texts, hashes, labels, *others = zip(*samples, strict=True)
    keys = np.array([key.encode() for key in texts], np.bytes_)
    return ShardIndex(keys, np.array(labels), np.array(hashes), *[np.array(column) for column in others])


def _by_hash(found: Found) -> np.ndarray:
    """The order of the hashes; equal ones stand in the order of the manifest."""
    return np.lexsort((found.samples, found.shards, found.hashes))


def _in_indexes(split: Split, limit: int) -> Found:
    """The lowest samples by the indexes of all shards, of which a few are in memory at a time."""
    best: list[Found] = []
    for number, index in each_index(split.manifest.indexes, np.flatnonzero(split.counts).tolist()):
        members = split.members(number, index)
        members = members[np.argsort(index.hashes[members], kind="stable")[:limit]]
        best.append(Found.of(number, index, members))
        if sum(map(len, best)) > 4 * limit:
            best = [_cut(best, limit)]
    return _cut(best, limit)


def _cut(parts: list[Found], limit: int) -> Found:
    whole = joined(parts)
    return whole.at(_by_hash(whole)[:limit])
