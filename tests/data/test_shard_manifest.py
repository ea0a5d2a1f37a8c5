import json

import pytest

from ebmscale.data.checks import inspect_shards, verify
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import DataError


@pytest.fixture
def manifest(make_source, storage):
    return pack(make_source(num_train=30), storage, shard_samples=10)


def test_nothing_there(storage):
    with pytest.raises(DataError, match=r"does not exist: write shards there with `ebmscale pack FORMAT SRC /"):
        Manifest.load(storage)


def test_a_folder_of_something_else(storage):
    storage.publish("holiday.jpg", b"")
    with pytest.raises(DataError, match=r"has no manifest\.json: write shards there with `ebmscale pack"):
        Manifest.load(storage)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"kind": "checkpoint"}', "null", "\x00"])
def test_a_foreign_or_broken_manifest(storage, text):
    storage.publish(FILE, text.encode())
    with pytest.raises(DataError, match="does not describe shards of ebmscale"):
        Manifest.load(storage)


def test_bytes_that_are_no_text(storage):
    storage.publish(FILE, b"\xff\xfe\xff")
    with pytest.raises(DataError, match="does not describe shards of ebmscale"):
        Manifest.load(storage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(version=3), "its version is 3, but this program reads versions 1 and 2"),
        (lambda fields: fields.update(extra=1), "missing, unknown or of the wrong form"),
        (lambda fields: fields.pop("classes"), "missing, unknown or of the wrong form"),
        (
            lambda fields: fields.update(image_shape=[8, 0]),
            r"the shape of its samples, \[8, 0\], is not a list of sizes",
        ),
        (lambda fields: fields.update(image_shape="8x8"), "is not a list of sizes"),
        (lambda fields: fields.update(shards=3), "missing, unknown or of the wrong form"),
        (lambda fields: fields["shards"].pop("sha256"), "missing, unknown or of the wrong form"),
        (lambda fields: fields["shards"]["sha256"].pop(), "differ in length"),
    ],
)
def test_reading_is_strict(storage, manifest, change, message):
    fields = json.loads(storage.read_text(FILE))
    change(fields)
    storage.publish(FILE, json.dumps(fields).encode())
    with pytest.raises(DataError, match=message):
        Manifest.load(storage)


def test_sound_shards_pass_every_level(storage, manifest):
    for level in ("sha256", "size", "none"):
        verify(storage, manifest, level)
    assert [finding.problem for finding in inspect_shards(storage, manifest)] == [None] * 3


@pytest.fixture
def damage(storage, flip_byte):
    """A function that damages a shard in one of three ways."""

    def damage_shard(shard, kind):
        if kind == "missing":
            storage.delete(shard.file)
        elif kind == "truncated":
            storage.publish(shard.file, storage.read_bytes(shard.file)[:-700])
        else:
            flip_byte(storage, shard, 4)

    return damage_shard


@pytest.mark.usefixtures("manifest")
@pytest.mark.parametrize(
    ("kind", "level", "problem"),
    [
        ("missing", "size", "is missing"),
        ("missing", "sha256", "is missing"),
        ("truncated", "size", "bytes where the manifest says"),
        ("flipped", "sha256", "is damaged"),
    ],
)
def test_damage_is_found_and_the_shard_named(storage, damage, kind, level, problem):
    manifest = Manifest.load(storage)
    damage(manifest.shards[1], kind)
    with pytest.raises(DataError, match=rf"toy-train-000001\.tar .*{problem}"):
        verify(storage, manifest, level)
    verify(storage, manifest, "none")
    findings = list(inspect_shards(storage, manifest))
    assert [finding.problem is None for finding in findings] == [True, False, True]
    assert findings[1][:3] == ("toy-train-000001.tar", 10, manifest.shards[1].num_bytes)
