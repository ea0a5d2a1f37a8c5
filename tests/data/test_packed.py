"""Packing again: nothing is done where the source is as it was, and it is said what differs where it is not."""

import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image

from ebmscale.data import packed as module
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.packed import packed_manifest
from ebmscale.data.source_record import FILE, SourceRecord
from ebmscale.errors import DataError
from ebmscale.storage import Storage


@pytest.fixture
def arrays(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (30, 4, 4), np.uint8))
    np.save(folder / "labels.npy", np.arange(30) % 3)
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "set"
    for number in range(6):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)).save(path)
    return folder


def shift(path):
    """Set the time of the last change a second back, as copying may."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns - 10**9))


def change_labels(folder):
    np.save(folder / "labels.npy", (np.arange(30) + 1) % 3)


def change_one_label(folder):
    labels = np.load(folder / "labels.npy")
    labels[7] = 2
    np.save(folder / "labels.npy", labels)


def change_a_number(folder):
    images = np.load(folder / "images.npy")
    images[29, 3, 3] += 1
    np.save(folder / "images.npy", images)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (change_labels, "30 labels differ now, first train-0000-000000 was 0, now 1"),
        (change_one_label, "1 labels differ now, first train-0000-000007 was 1, now 2"),
        (change_a_number, "the content of train-0000-000029 has changed"),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_changed_arrays_are_named(arrays, storage, change, difference, recorded, encoding):
    pack(open_source("npy", str(arrays)), storage, encoding=encoding)
    if not recorded:  # as of sets of earlier versions
        storage.delete(FILE)
    before = {name: storage.read_bytes(name) for name in storage.list()}
    change(arrays)
    with pytest.raises(DataError, match=f"already holds another set .*: {difference}; pack set to another address"):
        pack(open_source("npy", str(arrays)), storage)
    assert {name: storage.read_bytes(name) for name in storage.list()} == before


def test_a_changed_picture_is_named(pictures, storage):
    pack(open_source("folder", str(pictures)), storage)
    path = pictures / "b" / "3.png"
    Image.fromarray(np.asarray(Image.open(path)) ^ 1).save(path)
    shift(path)
    with pytest.raises(DataError, match=r"the content of b-3-.* has changed"):
        packed_manifest(open_source("folder", str(pictures)), storage)


def test_pictures_that_moved_to_another_class_are_named(pictures, storage):
    pack(open_source("folder", str(pictures)), storage)
    (pictures / "a" / "0.png").rename(pictures / "b" / "0.png")
    with pytest.raises(DataError, match=r"a-0-.* of its part train is a-2-.* of part train now"):
        packed_manifest(open_source("folder", str(pictures)), storage)


def test_other_parts_and_classes_are_named(pictures, storage):
    pack(open_source("folder", str(pictures)), storage)
    (pictures / "a").rename(pictures / "train")
    (pictures / "b").rename(pictures / "val")
    with pytest.raises(DataError, match=r"its classes is \['a', 'b'\], now it is \[\]"):
        packed_manifest(open_source("folder", str(pictures)), storage)


@pytest.mark.parametrize("encoding", ["raw", "png", "jpeg"])
def test_an_unchanged_source_is_not_read_again(pictures, storage, encoding, monkeypatch):
    manifest = pack(open_source("folder", str(pictures)), storage, encoding=encoding)
    monkeypatch.setattr(module, "_images", None)
    assert packed_manifest(open_source("folder", str(pictures)), storage) == manifest


@pytest.mark.parametrize("encoding", ["raw", "png", "jpeg"])
@pytest.mark.parametrize("reason", ["times", "no record", "damaged record"])
def test_an_unchanged_source_with_other_times_or_no_record_is_compared(pictures, storage, encoding, reason):
    manifest = pack(open_source("folder", str(pictures)), storage, encoding=encoding)
    if reason == "times":
        shift(pictures / "a" / "0.png")
    elif reason == "no record":
        storage.delete(FILE)
    else:
        storage.publish(FILE, b'{"kind": "ebmscale-source", "version": 1, "x": 3}')
    source = open_source("folder", str(pictures))
    assert packed_manifest(source, storage) == manifest
    assert SourceRecord.load(storage) == SourceRecord.of(source)


def test_small_arrays_are_compared_whatever_their_times_say(arrays, storage):
    pack(open_source("npy", str(arrays)), storage)
    path = arrays / "images.npy"
    time = path.stat().st_mtime_ns
    change_a_number(arrays)
    os.utime(path, ns=(time, time))
    with pytest.raises(DataError, match="the content of train-0000-000029"):
        packed_manifest(open_source("npy", str(arrays)), storage)


def test_a_png_that_another_version_wrote_is_the_same(make_source, storage):
    source = make_source()
    one = dataclasses.replace(source, image_shape=(1, 3, 4), records=lambda: _first_channels(source))
    manifest = pack(one, storage, encoding="png")
    [shard], index = manifest.shards, manifest.index(0)
    other = dataclasses.replace(index, crc32=index.crc32 ^ 1)
    storage.publish(shard.index_file, other.to_bytes(shard.sha256))
    assert packed_manifest(one, storage) == Manifest.load(storage)


def _first_channels(source):
    return (record._replace(image=record.image[:1]) for record in source.records())


def test_the_record_does_not_change_the_manifest(arrays, tmp_path):
    texts = []
    for name in ("one", "two"):
        pack(open_source("npy", str(arrays)), Storage.at(tmp_path / name))
        shift(arrays / "images.npy")
        texts.append((tmp_path / name / "manifest.json").read_text())
    assert texts[0] == texts[1]


class Killed(Exception):
    """In the place of a kill."""


def stop(*_):
    raise Killed


@pytest.mark.parametrize("change", [change_labels, change_a_number])
def test_an_interrupted_pack_does_not_go_on_with_another_source(arrays, storage, change):
    with pytest.raises(Killed):
        pack(open_source("npy", str(arrays)), storage, shard_samples=10, progress=stop)
    change(arrays)
    with pytest.raises(DataError, match=r"an unfinished pack whose source changed since \(other source\)"):
        pack(open_source("npy", str(arrays)), storage, shard_samples=10)


def test_an_interrupted_pack_of_what_has_no_files_compares_what_is_finished(make_source, storage):
    source = make_source()
    with pytest.raises(Killed):
        pack(source, storage, shard_samples=10, progress=stop)
    for change in (lambda record: {"label": 2 - record.label}, lambda record: {"image": record.image ^ 1}):
        changed = [record._replace(**change(record)) for record in source.records()]
        with pytest.raises(DataError, match=r"not those that shard toy-train-000000\.tar was made of"):
            pack(dataclasses.replace(source, records=lambda: iter(changed)), storage, shard_samples=10)  # noqa: B023


def test_an_interrupted_pack_of_an_earlier_version_goes_on(arrays, storage):
    with pytest.raises(Killed):
        pack(open_source("npy", str(arrays)), storage, shard_samples=10, progress=stop)
    plan = json.loads(storage.read_text(".partial/plan.json"))
    del plan["source"]
    storage.publish(".partial/plan.json", json.dumps(plan).encode())
    assert pack(open_source("npy", str(arrays)), storage, shard_samples=10).counts() == {"train": 30}
