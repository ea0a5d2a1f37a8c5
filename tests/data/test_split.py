import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmscale.config import HeldOutBlock
from ebmscale.data.chunks import read_split
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.shard_index import key_hash
from ebmscale.data.split import SPLITS, select
from ebmscale.errors import ConfigError, DataError
from ebmscale.storage import Storage
from tests.data.indexed import indexed
from tests.data.streams import image_stream


@pytest.fixture(scope="module")
def held_out_set(make_source, tmp_path_factory):
    storage = Storage.at(tmp_path_factory.mktemp("held-out"))
    return storage, pack(make_source(num_train=150, num_test=50), storage, shard_samples=32)


def keys_of(*args, **settings):
    return set(select(*args, **settings).find().texts())


def test_train_and_validation_share_out_the_train_part(make_source, storage):
    manifest = pack(make_source(num_train=400, num_test=30), storage, shard_samples=64)
    train, validation, test = (keys_of(manifest, split, 0.2) for split in ("train", "validation", "test"))
    assert not train & validation
    assert train | validation == {key for shard in indexed(manifest) if shard.part == "train" for key in shard.keys}
    assert 50 < len(validation) < 110
    assert test == {f"test-{i:06d}" for i in range(30)}


def test_a_larger_fraction_only_adds_to_validation(make_source, storage):
    manifest = pack(make_source(num_train=400), storage)
    assert keys_of(manifest, "validation", 0.1) < keys_of(manifest, "validation", 0.3)


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


@pytest.fixture(scope="module")
def three_parts(make_source, tmp_path_factory):
    """A set whose validation part is a third of what otherwise were its train part."""
    source = make_source(num_train=90, num_test=30)

    def records():
        parts = {part: [] for part in SPLITS}
        for record in source.records():
            held = record.part == "train" and int(record.key[-6:]) % 3 == 0
            parts["validation" if held else record.part].append(record)
        for part, members in parts.items():
            yield from (record._replace(part=part, label=int(record.key[-6:]) % 2) for record in members)

    counts = {"train": 60, "validation": 30, "test": 30}
    storage = Storage.at(tmp_path_factory.mktemp("three-parts"))
    return pack(replace(source, counts=counts, records=records), storage, shard_samples=7)


@pytest.mark.parametrize("fraction", [0, 0.05, 0.9])
def test_a_validation_part_is_the_validation_split(three_parts, fraction):
    for split in SPLITS:
        keys = {key for shard in indexed(three_parts) if shard.part == split for key in shard.keys}
        assert keys_of(three_parts, split, fraction) == keys
    assert three_parts.counts() == {"train": 60, "validation": 30, "test": 30}


def test_a_held_out_class_of_a_set_with_a_validation_part(three_parts):
    labels = _labels(three_parts)
    plain = _sets(three_parts, HeldOutBlock())
    found = _sets(three_parts, HeldOutBlock(label="b"))
    assert found["test"] == plain["test"]
    for split in ("train", "validation"):
        assert found[split] == {key for key in plain[split] if labels[key] != "b"}
    anomalous = keys_of(three_parts, "validation", held_out=HeldOutBlock(label="b"), with_anomalies=True)
    assert anomalous == plain["validation"]
    pooled = _sets(three_parts, HeldOutBlock(label="b", protocol="pooled"))
    assert pooled["validation"] < plain["validation"]
    assert not pooled["train"] & (pooled["validation"] | pooled["test"] | plain["validation"])
    assert set.union(*pooled.values()) == set(labels)


def _sets(manifest, held_out, fraction=0.2):
    return {split: keys_of(manifest, split, fraction, held_out) for split in SPLITS}


def _labels(manifest):
    return {
        key: manifest.classes[label]
        for shard in indexed(manifest)
        for key, label in zip(shard.keys, shard.labels, strict=True)
    }


@pytest.mark.parametrize("label", ["a", "b", "c"])
def test_the_official_protocol_trains_without_the_class_and_tests_on_the_whole_test_part(make_source, storage, label):
    manifest = pack(make_source(num_train=400, num_test=30), storage, shard_samples=64)
    labels = _labels(manifest)
    found, plain = (_sets(manifest, held_out) for held_out in (HeldOutBlock(label=label), HeldOutBlock()))
    assert found["test"] == plain["test"] == {key for key in labels if key.startswith("test")}
    for split in ("train", "validation"):
        assert found[split] == {key for key in plain[split] if labels[key] != label}
    anomalous = keys_of(manifest, "validation", 0.2, HeldOutBlock(label=label), with_anomalies=True)
    assert anomalous == plain["validation"]
    assert keys_of(manifest, "train", 0.2, HeldOutBlock(label=label), with_anomalies=True) == found["train"]


@pytest.mark.parametrize("label", ["a", "b", "c"])
def test_the_pooled_protocol_tests_on_a_fifth_of_the_normal_samples_and_all_of_the_class(make_source, storage, label):
    manifest = pack(make_source(num_train=2400, num_test=600), storage, shard_samples=64)
    labels = _labels(manifest)
    found = _sets(manifest, HeldOutBlock(label=label, protocol="pooled"))
    assert not found["train"] & found["validation"]
    assert not found["test"] & (found["train"] | found["validation"])
    assert set.union(*found.values()) == set(labels)
    assert {labels[key] for key in found["train"] | found["validation"]} == {"a", "b", "c"} - {label}
    assert {key for key in labels if labels[key] == label} < found["test"]
    normal = sum(labels[key] != label for key in found["test"])
    assert abs(normal - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5  # binomial: 2,000 normal samples, a fifth of them
    held = len(found["validation"])
    assert abs(held - 320) < 5 * (1600 * 0.2 * 0.8) ** 0.5  # validation is chosen independently of test
    assert any(key.startswith("test") for key in found["train"])


def test_the_normal_test_samples_of_the_pooled_protocol_do_not_depend_on_the_class(make_source, storage):
    manifest = pack(make_source(num_train=400, num_test=100), storage)
    labels = _labels(manifest)
    tests = [_sets(manifest, HeldOutBlock(label=label, protocol="pooled"))["test"] for label in "ab"]
    assert {key for key in tests[0] if labels[key] == "c"} == {key for key in tests[1] if labels[key] == "c"}


@settings(max_examples=20)
@given(
    protocol=st.sampled_from(["official", "pooled"]), label=st.sampled_from("abc"), size=st.sampled_from([1, 2, 3, 4])
)
def test_no_worker_ever_streams_a_held_out_sample(held_out_set, protocol, label, size):
    storage, manifest = held_out_set
    held_out = HeldOutBlock(label=label, protocol=protocol)
    settings = {"batch_size": 24, "seed": 5, "num_streams": 12, "window": 8, "validation_fraction": 0.2}
    whole = select(manifest, "train", 0.2, held_out)
    seen = []
    for rank in range(size):
        stream = image_stream(storage, manifest, split="train", rank=rank, size=size, held_out=held_out, **settings)
        with contextlib.closing(stream):
            for batch in itertools.islice(stream, -(-len(whole) // 24)):
                seen += [(batch.start + row, key) for row, key in zip(batch.rows.tolist(), batch.keys, strict=True)]
                assert manifest.classes.index(label) not in batch.labels
    first_epoch = [key for _, key in sorted(seen)][: len(whole)]
    assert sorted(first_epoch) == sorted(whole.find().texts())


def test_held_out_samples_are_read_for_evaluation(held_out_set):
    storage, manifest = held_out_set
    held_out = HeldOutBlock(label="b", protocol="pooled")
    _, labels, keys = read_split(storage, manifest, "test", held_out=held_out)
    assert sorted(keys) == sorted(keys_of(manifest, "test", held_out=held_out))
    assert labels.eq(1).sum() == sum(label == 1 for shard in indexed(manifest) for label in shard.labels)


def test_a_class_that_the_set_has_not_is_refused(make_source, storage):
    manifest = pack(make_source(), storage)
    manifest = replace(manifest, classes=["anna", "bert", "carl"])
    with pytest.raises(ConfigError, match=r"toy has no class 'berta'; did you mean 'bert'\?"):
        select(manifest, "train", 0.1, HeldOutBlock(label="berta"))
    with pytest.raises(ConfigError, match="choose one of anna, bert, carl"):
        select(manifest, "train", 0.1, HeldOutBlock(label="9"))


def test_a_class_of_an_unlabelled_set_cannot_be_held_out(make_source, storage):
    manifest = pack(make_source(num_train=3), storage)
    shard = replace(manifest.shards[0], num_unlabelled=1)
    with pytest.raises(DataError, match="1 samples of toy have no label, so its class 'a' cannot be held out"):
        select(replace(manifest, shards=[shard]), "train", 0.1, HeldOutBlock(label="a"))


def test_indexes_are_read_once_where_the_manifest_cannot_count(held_out_set, monkeypatch):
    storage, packed = held_out_set
    fetched = []
    manifest = Manifest.load(storage)
    fetch = manifest.indexes.fetch
    monkeypatch.setattr(manifest.indexes, "fetch", lambda numbers: fetched.extend(numbers) or fetch(numbers))
    assert len(select(manifest, "train", 0.05)) + len(select(manifest, "validation", 0.05)) == 150
    assert fetched == []
    found = {split: len(select(manifest, split, 0.3, HeldOutBlock(label="a"))) for split in SPLITS}
    assert sorted(fetched) == [n for n, shard in enumerate(packed.shards) if shard.part == "train"]
    assert found == {split: len(select(packed, split, 0.3, HeldOutBlock(label="a")).find()) for split in SPLITS}
