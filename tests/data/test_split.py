import pytest
import torch

from ebmscale.data.pack import pack
from ebmscale.data.split import key_hash, select
from ebmscale.data.stream import read_split
from ebmscale.errors import ConfigError, DataError
from ebmscale.storage import Storage


def test_train_and_validation_share_out_the_train_part(make_source, storage):
    manifest = pack(make_source(num_train=400, num_test=30), storage, shard_samples=64)
    train, validation, test = (set(select(manifest, split, 0.2).keys) for split in ("train", "validation", "test"))
    assert not train & validation
    assert train | validation == {key for shard in manifest.shards if shard.part == "train" for key in shard.keys}
    assert 50 < len(validation) < 110
    assert test == {f"test-{i:06d}" for i in range(30)}


def test_a_larger_fraction_only_adds_to_validation(make_source, storage):
    manifest = pack(make_source(num_train=400), storage)
    assert set(select(manifest, "validation", 0.1).keys) < set(select(manifest, "validation", 0.3).keys)


def test_a_set_without_test_part_says_so(make_source, storage):
    manifest = pack(make_source(), storage)
    with pytest.raises(DataError, match="toy has no test part; use the validation split"):
        select(manifest, "test")


def test_empty_splits_unknown_splits_and_fractions_are_refused(make_source, storage):
    manifest = pack(make_source(), storage)
    with pytest.raises(DataError, match="validation split of toy is empty"):
        select(manifest, "validation", 0)
    with pytest.raises(ConfigError, match="choose one of train, validation, test"):
        select(manifest, "dev")
    with pytest.raises(ConfigError, match="below 1"):
        select(manifest, "train", 1.0)


def test_read_split_does_not_depend_on_the_sharding(make_source, tmp_path):
    read = []
    for shard_samples in (7, 1000):
        storage = Storage.at(tmp_path / str(shard_samples))
        manifest = pack(make_source(num_train=100), storage, shard_samples=shard_samples)
        read.append(read_split(storage, manifest, "train"))
    (images, labels, keys), (other_images, other_labels, other_keys) = read
    assert keys == other_keys == sorted(keys, key=key_hash)
    assert torch.equal(images, other_images)
    assert torch.equal(labels, other_labels)


def test_a_limit_takes_the_beginning(make_source, storage):
    manifest = pack(make_source(num_train=100), storage)
    images, labels, keys = read_split(storage, manifest, "train")
    few_images, few_labels, few_keys = read_split(storage, manifest, "train", limit=10)
    assert few_keys == keys[:10]
    assert torch.equal(few_images, images[:10])
    assert torch.equal(few_labels, labels[:10])
    assert len(read_split(storage, manifest, "train", limit=10**6)[2]) == len(keys)


def test_read_split_names_a_damaged_shard(make_source, storage, flip_byte):
    manifest = pack(make_source(), storage, shard_samples=10)
    flip_byte(storage, manifest.shards[3], 0)
    with pytest.raises(DataError, match=r"toy-train-000003\.tar has damaged samples"):
        read_split(storage, manifest, "train", validation_fraction=0)
