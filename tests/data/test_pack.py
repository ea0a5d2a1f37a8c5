import dataclasses
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ebmscale.data.checks import verify
from ebmscale.data.chunks import read_split
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.packed import packed_manifest
from ebmscale.errors import DataError
from ebmscale.storage import Storage

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def by_key(source):
    return {record.key: record for record in source.records()}


def assert_same_samples(records, images, labels, keys):
    assert sorted(keys) == sorted(records)
    for image, label, key in zip(images.numpy(), labels.tolist(), keys, strict=True):
        np.testing.assert_array_equal(image, records[key].image)
        assert label == records[key].label


def test_digits_come_back_as_they_were(storage):
    source = open_source("digits", "")
    manifest = pack(source, storage, shard_samples=500)
    assert [shard.num_samples for shard in manifest.shards] == [500, 500, 500, 297]
    assert_same_samples(by_key(source), *read_split(storage, manifest, "train", validation_fraction=0))


@pytest.mark.skipif(not MNIST.exists(), reason="the official MNIST files are not on this machine")
def test_mnist_comes_back_as_it_was(storage):
    source = open_source("idx", str(MNIST))
    manifest = pack(source, storage)
    assert manifest.counts() == {"train": 60000, "test": 10000}
    records = {key: record for key, record in by_key(source).items() if record.part == "test"}
    assert_same_samples(records, *read_split(storage, manifest, "test"))


def test_the_manifest_says_what_is_stored(make_source, storage):
    manifest = pack(make_source(num_train=25, num_test=7), storage, shard_samples=10)
    assert Manifest.load(storage) == manifest
    assert [(shard.file, shard.num_samples) for shard in manifest.shards] == [
        ("toy-train-000000.tar", 10),
        ("toy-train-000001.tar", 10),
        ("toy-train-000002.tar", 5),
        ("toy-test-000000.tar", 7),
    ]
    assert storage.list() == sorted(
        ["manifest.json", *(file for shard in manifest.shards for file in (shard.file, shard.index_file))]
    )
    verify(storage, manifest, "sha256")


def test_offsets_are_those_of_the_tar(make_source, storage):
    manifest = pack(make_source(), storage)
    [shard] = manifest.shards
    with tarfile.open(storage.local_path(shard.file)) as tar:
        images = [member for member in tar if member.name.endswith(".bin")]
    assert [member.offset_data for member in images] == manifest.index(0).offsets.tolist()
    assert [member.size for member in images] == manifest.index(0).sizes.tolist()


def test_webdataset_reads_the_shards(make_source, storage):
    source = make_source()
    [shard] = pack(source, storage).shards
    samples = list(webdataset.WebDataset(str(storage.local_path(shard.file)), shardshuffle=False))
    records = by_key(source)
    assert [sample["__key__"] for sample in samples] == list(records)
    for sample in samples:
        assert sample["bin"] == records[sample["__key__"]].image.tobytes()
        assert int(sample["cls"]) == records[sample["__key__"]].label


def test_a_sample_without_label_has_no_cls(make_source, storage):
    source = make_source(num_train=3)
    bare = [record._replace(label=-1) for record in source.records()]
    [shard] = pack(dataclasses.replace(source, records=lambda: iter(bare), classes=[]), storage).shards
    with tarfile.open(storage.local_path(shard.file)) as tar:
        assert tar.getnames() == [f"{record.key}.bin" for record in bare]


def test_the_same_records_give_the_same_bytes(make_source, tmp_path):
    a, b = Storage.at(tmp_path / "a"), Storage.at(tmp_path / "b")
    for storage in (a, b):
        pack(make_source(num_test=5), storage, shard_samples=20)
    assert {name: a.read_bytes(name) for name in a.list()} == {name: b.read_bytes(name) for name in b.list()}


def test_shards_end_by_bytes_too(make_source, storage):
    manifest = pack(make_source(num_train=10), storage, shard_bytes=4 * 2048)
    assert [shard.num_samples for shard in manifest.shards] == [4, 4, 2]


def test_progress_counts_to_the_end(make_source, storage):
    seen = []
    pack(make_source(num_train=25), storage, shard_samples=10, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 25), (20, 25), (25, 25)]


def test_a_packed_set_is_not_packed_again(make_source, storage):
    source = make_source()
    assert packed_manifest(source, storage) is None
    manifest = pack(source, storage)
    storage.delete(manifest.shards[0].file)
    assert pack(source, storage) == manifest
    assert not storage.exists(manifest.shards[0].file)


@pytest.mark.parametrize("change", [{"num_train": 51}, {"num_test": 1}, {"name": "other"}])
def test_another_set_is_not_overwritten(make_source, storage, change):
    pack(make_source(), storage)
    with pytest.raises(DataError, match="already holds another set"):
        pack(make_source(**change), storage)


def test_another_set_of_the_same_description_is_not_overwritten(make_source, storage):
    source = make_source()
    pack(source, storage)
    inverted = [record._replace(image=~record.image) for record in source.records()]
    with pytest.raises(DataError, match="already holds another set"):
        pack(dataclasses.replace(source, records=lambda: iter(inverted)), storage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a.b"}, "must be ASCII, without dots"),
        ({"key": "train-000001"}, "share a key"),
        ({"image": np.zeros((2, 3, 5), np.uint8)}, "resize or convert"),
        ({"image": np.zeros((2, 3, 4), np.float32)}, "resize or convert"),
    ],
)
def test_records_that_would_not_come_back_are_refused(make_source, storage, change, message):
    source = make_source(num_train=3)
    first, *rest = source.records()
    records = [first._replace(**change), *rest]
    with pytest.raises(DataError, match=message):
        pack(dataclasses.replace(source, records=lambda: iter(records)), storage)
    assert not storage.exists("manifest.json")
