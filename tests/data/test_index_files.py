"""The index of each shard: read when it is needed, refused where it does not fit, made again by `ebmscale index`."""

import dataclasses
import itertools
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.cli import cli
from ebmscale.data import indexes
from ebmscale.data.cache import RangeCache
from ebmscale.data.choose import lowest, select_all
from ebmscale.data.chunks import read_split
from ebmscale.data.index import index
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.shard_index import FRACTIONS, ShardIndex, key_hash
from ebmscale.data.split import select
from ebmscale.errors import DataError
from tests.data.indexed import indexed
from tests.data.streams import image_stream

NAME = "toy-train-000001.index.npz"


@pytest.fixture
def manifest(make_source, storage):
    return pack(make_source(num_train=60), storage, shard_samples=20)


def train(storage, cache=None):
    settings = {"batch_size": 12, "seed": 3, "num_streams": 8, "window": 4, "validation_fraction": 0}
    stream = image_stream(storage, Manifest.load(storage), split="train", cache=cache, **settings)
    with closing(stream):
        return [batch.keys for batch in itertools.islice(stream, 5)]


def test_numpy_opens_an_index(manifest, storage):
    with np.load(storage.local_path(NAME)) as found:
        assert found["keys"][0] == b"train-000020"
        assert found["shard"] == manifest.shards[1].sha256
        assert found["hashes"].tolist() == [key_hash(key) for key in indexed(manifest)[1].keys]


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.integers(-1, 9)), min_size=1)
)
def test_an_index_comes_back_as_it_was(samples):
    keys, labels = zip(*samples, strict=True)
    numbers = [3 * place for place in range(len(keys))]
    written = ShardIndex.of(keys, labels, numbers, numbers, numbers)
    read, sha256 = ShardIndex.from_bytes(written.to_bytes("ab"))
    assert (read.texts(), read.labels.tolist(), sha256) == (list(keys), list(labels), "ab")
    assert read.offsets.tolist() == read.sizes.tolist() == read.crc32.tolist() == numbers
    assert read.below(FRACTIONS) == tuple(sum(key_hash(key) < f for key in keys) for f in FRACTIONS)


def other_shard(storage):
    storage.publish(NAME, storage.read_bytes("toy-train-000002.index.npz"))


def other_labels(storage):
    whole, sha256 = ShardIndex.from_bytes(storage.read_bytes(NAME))
    whole.labels[3] = 0 if whole.labels[3] else 1
    storage.publish(NAME, whole.to_bytes(sha256))


DAMAGE = {
    "is missing": lambda storage: storage.delete(NAME),
    "is damaged": lambda storage: storage.publish(NAME, storage.read_bytes(NAME)[:-50]),
    "does not fit its shard, because it was made from another file": other_shard,
    "does not fit its shard, because it has other samples or labels": other_labels,
}


@pytest.mark.parametrize("words", DAMAGE)
@pytest.mark.usefixtures("manifest")
def test_an_index_that_does_not_fit_is_named_and_made_again(storage, words):
    expected, files = train(storage), {name: storage.read_bytes(name) for name in storage.list()}
    DAMAGE[words](storage)
    with pytest.raises(DataError, match=rf"{NAME} {words}.*write it again with `ebmscale index"):
        train(storage)
    assert CliRunner().invoke(cli, ["inspect", "--verify", storage.url]).exit_code != 0
    result = CliRunner().invoke(cli, ["index", storage.url])
    assert result.output.endswith("1 index file(s) written\n")
    assert {name: storage.read_bytes(name) for name in storage.list()} == files
    assert train(storage) == expected


def test_an_index_is_not_made_of_another_shard(manifest, storage):
    storage.delete(NAME)
    storage.publish("toy-train-000001.tar", storage.read_bytes("toy-train-000002.tar"))
    with pytest.raises(DataError, match=r"toy-train-000001\.tar is not the one that was packed"):
        index(storage)


@pytest.mark.parametrize("number", [0, 2])
def test_a_shard_that_was_replaced_is_named(manifest, storage, number):
    storage.publish("toy-train-000001.tar", storage.read_bytes(f"toy-train-00000{number}.tar"))
    with pytest.raises(DataError, match=r"toy-train-000001\.tar is not the one that its index describes"):
        read_split(storage, manifest, "train", validation_fraction=0)
    with pytest.raises(DataError, match=r"toy-train-000001\.tar"):
        train(storage)


def test_an_index_in_the_cache_that_was_written_anew_is_read_again(manifest, storage, tmp_path):
    whole = storage.read_bytes(NAME)
    storage.publish(NAME, bytes(len(whole)))
    cache = RangeCache(storage, manifest, tmp_path / "cache", 1 << 20)
    with pytest.raises(DataError, match="is damaged"):
        train(storage, cache)
    storage.publish(NAME, whole)
    assert train(storage, cache) == train(storage)


def test_the_memory_of_indexes_is_bounded(manifest, monkeypatch):
    one = manifest.index(0).num_bytes
    monkeypatch.setattr(indexes, "KEPT_BYTES", 2 * one)
    files = manifest.indexes.through(None)
    for number in (0, 1, 2, 0, 1):
        files.fetch([number])
    assert len(files._kept) == 2
    assert files._kept_bytes == 2 * one
    assert len(select_all(manifest).find(indexes=files)) == 60


@pytest.mark.parametrize("limit", [1, 7, 30, None])
@pytest.mark.parametrize("fraction", [0.2, 0.33])
def test_the_manifest_knows_the_lowest_samples(make_source, storage, monkeypatch, limit, fraction):
    """The same samples are found by the manifest and by all indexes."""
    monkeypatch.setattr("ebmscale.data.lowest.NUM_LOWEST", 10)
    pack(make_source(num_train=200), storage, shard_samples=16)
    manifest = Manifest.load(storage)
    split = select(manifest, "validation", fraction)
    expected = sorted(split.find().texts(), key=key_hash)[:limit]
    found = lowest(split, limit)
    assert found.texts() == expected
    again = split.manifest.indexes.fetch(range(13))
    for place in range(len(found)):
        row, number = again[found.shards[place]], found.samples[place]
        assert row.keys[number] == found.keys[place]
        assert row.offsets[number] == found.offsets[place]
    if limit in (1, 7):
        for name in [name for name in storage.list() if name.endswith(".npz")]:
            storage.delete(name)
        assert lowest(select(Manifest.load(storage), "validation", 0.2), limit).texts() == expected


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("labels", -5, "has label -5"),
        ("hashes", np.nan, "has a hash"),
        ("hashes", -1, "has a hash"),
        ("hashes", 1, "has a hash"),
    ],
)
def test_values_that_no_index_has_are_refused(manifest, field, value, words):
    there = manifest.index(0)
    values = getattr(there, field).copy()
    values[1] = value
    changed = dataclasses.replace(there, **{field: values})
    row = dataclasses.replace(manifest.shards[0], labels_sha256=changed.labels_digest())
    with pytest.raises(ValueError, match=words):
        row.check(changed, len(manifest.classes), None)
