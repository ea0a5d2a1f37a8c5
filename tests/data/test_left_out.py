"""Samples that cannot be used are left out of a pack."""

import dataclasses

import numpy as np
import pytest

from ebmscale.data.left_out import FILE, LeftOutList
from ebmscale.data.make_test_part import with_test_part
from ebmscale.data.pack import pack
from ebmscale.data.packed import packed_manifest
from ebmscale.errors import ConfigError, DataError
from ebmscale.storage import Storage

BROKEN = {"train-000000", "train-000012", "train-000049", "test-000003"}


def with_broken(source, broken=BROKEN):
    """The source with files that cannot be read."""

    def unreadable():
        raise DataError("picture.png is not an image that can be read (truncated); delete it or get it again.")

    def records():
        return (one._replace(image=unreadable) if one.key in broken else one for one in source.records())

    return dataclasses.replace(source, records=records)


def stop_after(num_calls):
    def progress(done, total):
        nonlocal num_calls
        num_calls -= 1
        if not num_calls:
            raise KeyboardInterrupt

    return progress


def test_the_rest_is_packed_and_the_reasons_are_listed(make_source, storage):
    manifest = pack(with_broken(make_source(num_train=50, num_test=20)), storage, max_damaged=0.1)
    assert manifest.counts() == {"train": 47, "test": 19}
    found = LeftOutList.load(storage).samples
    assert {one.key for one in found} == BROKEN
    assert {one.part for one in found} == {"train", "test"}
    assert all("not an image that can be read (truncated)" in one.reason for one in found)


def test_samples_of_another_shape_are_left_out(make_source, storage):
    source = make_source(num_train=20)
    first, *rest = source.records()
    records = [first._replace(image=np.zeros((2, 3, 5), np.uint8)), *rest]
    manifest = pack(dataclasses.replace(source, records=lambda: iter(records)), storage, max_damaged=0.05)
    assert manifest.counts() == {"train": 19}
    [one] = LeftOutList.load(storage).samples
    assert "uint8 (2, 3, 5), but the set is uint8 (2, 3, 4)" in one.reason


def test_above_the_share_the_pack_stops_and_lists_what_it_found(make_source, storage):
    source = with_broken(make_source(num_train=50, num_test=20))
    with pytest.raises(DataError, match=r"2 of the 70 samples of toy cannot be used, more than the share of 0\.02"):
        pack(source, storage, max_damaged=0.02)
    assert not storage.exists("manifest.json")
    assert [one.key for one in LeftOutList.load(storage).samples] == ["train-000000", "train-000012"]
    pack(source, storage, max_damaged=0.1)  # the changed command goes on
    assert len(LeftOutList.load(storage).samples) == 4


@pytest.mark.parametrize("num_calls", [1, 2, 5, 6])
def test_a_pack_that_was_stopped_leaves_out_the_same(make_source, tmp_path, num_calls):
    source = with_broken(make_source(num_train=50, num_test=20))
    whole, stopped = Storage.at(tmp_path / "whole"), Storage.at(tmp_path / "stopped")
    pack(source, whole, shard_samples=12, max_damaged=0.1)
    with pytest.raises(KeyboardInterrupt):
        pack(source, stopped, shard_samples=12, max_damaged=0.1, progress=stop_after(num_calls))
    pack(source, stopped, shard_samples=12, max_damaged=0.1)
    assert {name: stopped.read_bytes(name) for name in stopped.list()} == {
        name: whole.read_bytes(name) for name in whole.list()
    }


def test_a_packed_set_is_known_with_and_without_its_broken_files(make_source, storage):
    source = make_source(num_train=50, num_test=20)
    manifest = pack(with_broken(source), storage, max_damaged=0.1)
    assert packed_manifest(with_broken(source), storage) == manifest
    remaining = dataclasses.replace(
        source,
        records=lambda: (one for one in source.records() if one.key not in BROKEN),
        counts={"train": 47, "test": 19},
    )
    assert packed_manifest(remaining, storage) == manifest
    with pytest.raises(DataError, match="train-000000 was left out, and can be used now"):
        packed_manifest(source, storage)


def test_a_sound_set_has_no_list(make_source, storage):
    storage.publish(FILE, b"{}")
    pack(make_source(), storage)
    assert not storage.exists(FILE)


def test_a_list_of_another_program_counts_as_none(storage):
    for text in (b"no json", b"{}", b'{"kind": "ebmscale-left-out", "version": 1, "samples": [{"key": 1}]}'):
        storage.publish(FILE, text)
        assert LeftOutList.load(storage).samples == []


def test_the_test_part_is_chosen_by_keys(make_source, storage):
    source = with_test_part(make_source(num_train=200), 0.2)
    keys = {part: {one.key for one in source.records() if one.part == part} for part in ("train", "test")}
    assert {part: len(found) for part, found in keys.items()} == source.counts
    assert 20 <= len(keys["test"]) <= 60
    more = with_test_part(make_source(num_train=300), 0.2)
    assert keys["test"] <= {one.key for one in more.records() if one.part == "test"}
    assert pack(source, storage).counts() == source.counts


@pytest.mark.parametrize(("num_test", "fraction"), [(5, 0.2), (0, 0.0), (0, 1.0)])
def test_a_test_part_needs_a_set_without_one_and_a_share(make_source, num_test, fraction):
    with pytest.raises(ConfigError, match="--test-fraction"):
        with_test_part(make_source(num_test=num_test), fraction)


def test_a_test_part_leaves_something_in_both(make_source):
    with pytest.raises(DataError, match="choose another share or a larger set"):
        with_test_part(make_source(num_train=2), 0.001)
