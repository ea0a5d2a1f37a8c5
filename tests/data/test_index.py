"""Shards that others made: their manifest is learned by reading them once."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmscale.cli import cli
from ebmscale.data.checks import verify
from ebmscale.data.chunks import read_split
from ebmscale.data.formats import open_source
from ebmscale.data.index import index
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import DataError
from ebmscale.storage import Storage
from tests.data.indexed import indexed
from tests.data.tar_files import (
    SHAPE,
    assert_same_images,
    encode,
    image,
    make_tar,
    members,
)


@pytest.mark.parametrize("ending", ["png", "npy", "bin", "jpg"])
def test_foreign_shards_are_indexed_and_read(storage, ending):
    storage.publish("set-000000.tar", make_tar(members(range(5), ending)))
    storage.publish("set-000001.tar", make_tar(members(range(5, 9), ending)))
    storage.publish("set-test-0.tar", make_tar(members(range(9, 12), ending)))
    seen = []
    manifest = index(storage, image_shape=SHAPE if ending == "bin" else None, progress=lambda *now: seen.append(now))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert manifest == Manifest.load(storage)
    assert manifest.encoding == {"png": "png", "jpg": "jpeg"}.get(ending, "raw")
    assert (manifest.counts(), manifest.image_shape, manifest.classes) == ({"train": 9, "test": 3}, SHAPE, list("012"))
    verify(storage, manifest, "sha256")
    images, labels, keys = read_split(storage, manifest, "train", validation_fraction=0)
    assert sorted(keys) == [f"some/dir/{number:04d}" for number in range(9)]
    for got, label, key in zip(images.numpy(), labels.tolist(), keys, strict=True):
        assert label == int(key[-4:]) % 3
        if ending != "jpg":
            np.testing.assert_array_equal(got, image(int(key[-4:])))


def test_float_arrays_keep_their_type(storage):
    latents = {f"z{number}": np.random.default_rng(number).normal(size=(4, 2, 2)).astype("f4") for number in range(6)}
    storage.publish("z.tar", make_tar((f"{key}.npy", encode("npy", value)) for key, value in latents.items()))
    manifest = index(storage)
    images, labels, keys = read_split(storage, manifest, "train", validation_fraction=0)
    assert (manifest.dtype, images.numpy().dtype, set(labels.tolist())) == ("float32", np.float32, {-1})
    for got, key in zip(images.numpy(), keys, strict=True):
        np.testing.assert_array_equal(got, latents[key])


def test_what_pack_wrote_is_indexed_to_the_same_shards(storage, make_source):
    packed = pack(make_source(num_train=30, num_test=7), storage, encoding="raw", shard_samples=10)
    found = index(storage, image_shape=packed.image_shape)
    assert sorted(found.shards, key=lambda shard: shard.file) == sorted(packed.shards, key=lambda shard: shard.file)


def test_labels_of_json_and_text_become_classes(storage):
    png = encode("png", image(0))
    storage.publish("a.tar", make_tar([("x.png", png), ("x.json", json.dumps({"label": "dog"}).encode())]))
    storage.publish("b.tar", make_tar([("y.txt", b"cat\n"), ("y.png", png), ("z.png", png)]))
    manifest = index(storage)
    assert manifest.classes == ["cat", "dog"]
    assert [shard.labels for shard in indexed(manifest)] == [[1], [0, -1]]


def test_keys_that_repeat_get_the_shards_name(storage):
    for name in ("a", "b"):
        storage.publish(f"{name}.tar", make_tar(members(range(2))))
    keys = [key for shard in indexed(index(storage)) for key in shard.keys]
    assert keys == ["a/some/dir/0000", "a/some/dir/0001", "b/some/dir/0000", "b/some/dir/0001"]


def test_unusable_samples_are_left_out_and_reported_by_shard(storage, caplog):
    good = list(members(range(3)))
    bad = [
        ("empty.cls", b"1"),
        ("noise.png", b"not an image"),
        ("large.png", encode("png", image(0, (3, 6, 6)))),
        ("array.npy", encode("npy", image(0))),
    ]
    storage.publish("a.tar", make_tar(good))
    storage.publish("b.tar", make_tar([*bad, *members([7])]))
    with caplog.at_level(logging.WARNING):
        manifest = index(storage)
    assert [shard.num_samples for shard in manifest.shards] == [3, 1]
    assert "b.tar: 4 samples left out, the first because empty has no image" in caplog.text
    assert "a.tar" not in caplog.text


def test_the_kind_of_most_images_is_the_sets(storage):
    first = [("0.png", encode("png", image(0, (3, 9, 9))))]
    storage.publish(
        "s.tar", make_tar(first + [(f"{number}.png", encode("png", image(number))) for number in range(1, 5)])
    )
    notes = []
    manifest = index(storage, note=notes.append)
    assert (manifest.image_shape, manifest.counts(), notes) == (SHAPE, {"train": 4}, ["1 of 5 samples left out"])


def test_a_set_of_which_most_is_left_out_is_refused(storage):
    shapes = [(3, 5, 4 + number % 3) for number in range(9)]
    storage.publish("s.tar", make_tar((f"{n}.png", encode("png", image(n, shape))) for n, shape in enumerate(shapes)))
    with pytest.raises(DataError, match=r"6 of 9 samples at .* cannot be used \(the first, of s\.tar: 1 is uint8"):
        index(storage)
    assert not storage.exists("manifest.json")


def test_parts_by_the_names_of_shards(storage):
    for number, name in enumerate(["train-0", "val-0", "dev-1", "test-0", "validation"]):
        storage.publish(f"{name}.tar", make_tar(members([number])))
    manifest = index(storage)
    assert {shard.file: shard.part for shard in manifest.shards} == {
        "train-0.tar": "train", "val-0.tar": "validation", "dev-1.tar": "validation", "test-0.tar": "test",
        "validation.tar": "validation",
    }  # fmt: skip


def test_names_that_are_no_utf8(storage):
    names = [os.fsdecode(name) for name in (b"caf\xe9", b"caf\xe8")]
    storage.publish("s.tar", make_tar((f"{name}.png", encode("png", image(n))) for n, name in enumerate(names)))
    manifest = index(storage)
    assert_same_images(storage, manifest, {"caf\\xe9": 0, "caf\\xe8": 1})


def test_the_command_says_what_is_not_in_the_set(storage):
    storage.publish("s.tar", make_tar([*members(range(3)), ("x.png", b"no picture")]))
    result = CliRunner().invoke(cli, ["index", storage.url])
    assert result.exit_code == 0
    assert result.output.endswith("shards, 3 train, 3 class(es), 1 shard(s), png; 1 of 4 samples left out\n")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 10**9))
def test_damaged_tars_are_indexed_or_refused(tmp_path_factory, changes, length):
    content = bytearray(make_tar([*members(range(2)), ("z.json", b'{"label": 1}'), ("z.npy", encode("npy", image(2)))]))
    for place, byte in changes:
        content[place % len(content)] = byte
    folder = Storage.at(tmp_path_factory.getbasetemp() / "damaged-tar")
    folder.publish("s.tar", bytes(content[:length]))
    with contextlib.suppress(DataError):
        assert index(folder).counts()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_tar(members(range(4)))[:900], r"b\.tar cannot be read as a tar"),
        (b"", r"b\.tar cannot be read as a tar"),
        (b"garbage" * 1000, r"b\.tar cannot be read as a tar"),
        (make_tar([*members([0]), *members([1]), *members([0])]), r"b\.tar holds a key twice"),
    ],
)
def test_unusable_shards_are_refused(storage, content, message):
    storage.publish("a.tar", make_tar(members(range(10, 12))))
    storage.publish("b.tar", content)
    with pytest.raises(DataError, match=message):
        index(storage)
    assert not storage.exists("manifest.json")


def ends():
    """A tar of two samples, and where its second sample begins and its last file ends."""
    content = make_tar(members(range(2)))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = tar.getmembers()
    return content, files[2].offset, -(-(files[-1].offset_data + files[-1].size) // 512) * 512


def test_a_tar_that_is_cut_between_files_or_goes_on_is_refused(storage):
    content, second, end = ends()
    damaged = bytearray(content)
    damaged[second + 150] ^= 255  # its checksum
    for wrong, message in (
        (content[:second], "lacks the mark of its end"),
        (content[: second + 100], f"at byte {second:,} there is neither a file nor the end"),
        (content[:end], "lacks the mark of its end"),
        (bytes(damaged), f"at byte {second:,} there is neither a file nor the end"),
        (content + make_tar(members(range(2, 4))), f"at byte {end:,} there is neither"),
    ):
        storage.publish("a.tar", wrong)
        with pytest.raises(DataError, match=rf"a\.tar cannot be read as a tar \(.*{message}"):
            index(storage)
    storage.publish("a.tar", content[: end + 512])  # one block of zeros is enough
    assert index(storage).counts() == {"train": 2}


@pytest.mark.parametrize("content", [b'{"name": "My app"}', b"no JSON", b'{"kind": "ebmscale-shards", "version": 99}'])
def test_a_manifest_of_others_is_kept(storage, content):
    storage.publish("a.tar", make_tar(members(range(3))))
    storage.publish("manifest.json", content)
    with pytest.raises(DataError, match=r"is no manifest that this ebmscale reads, and is not overwritten"):
        index(storage)
    assert storage.read_bytes("manifest.json") == content


def test_nothing_to_index_is_refused(storage):
    storage.publish("readme.txt", b"")
    with pytest.raises(DataError, match=r"has no \.tar files"):
        index(storage)
    storage.publish("a.tar", make_tar([("x.wav", b"1")]))
    with pytest.raises(DataError, match=r"No sample at .* can be used \(of a\.tar: x has no image, only \.wav\)"):
        index(storage)
    storage.publish("a.tar", make_tar([("x.bin", b"1")]))
    with pytest.raises(DataError, match="whose shape is not known"):
        index(storage)


def test_the_command_indexes_shards_of_others(tmp_path: Path) -> None:
    pack(open_source("digits", ""), Storage.at(tmp_path))
    (tmp_path / "manifest.json").unlink()
    command = [sys.executable, "-m", "ebmscale", "index", str(tmp_path)]
    done = subprocess.run([*command, "--shape", "1,8,8"], capture_output=True, text=True, check=True)
    assert "1,797 train" in done.stdout
    refused = subprocess.run([*command, "--shape", "8x8"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "three numbers" in refused.stderr


@pytest.mark.parametrize("name", ["a\\b.tar", "a\nb.tar", "a\x1b[31m.tar"])
def test_a_shard_whose_name_no_manifest_can_hold_is_refused(storage, name):
    storage.publish(name, make_tar(members(range(3))))
    with pytest.raises(DataError, match=r"has a backslash, a control character.*rename it"):
        index(storage)
    assert not storage.exists("manifest.json")


def test_a_hidden_shard_does_not_count(storage):
    storage.publish("a.tar", make_tar(members(range(3))))
    storage.publish(".b.tar", make_tar(members(range(3, 6))))
    assert index(storage).num_samples == 3
    assert Manifest.load(storage).num_samples == 3


@pytest.mark.parametrize("ending", ["cls", "json"])
def test_names_that_are_too_long_for_a_manifest_are_left_out_and_it_can_be_read(storage, ending):
    long = json.dumps("c" * 1001) if ending == "json" else "9" * 1001
    pictures = [("0.png", encode("png", image(0))), (f"0.{ending}", long.encode())]
    more = [("1.png", encode("png", image(1))), ("2.png", encode("png", image(2))), (f"1.{ending}", b"7")]
    storage.publish("a.tar", make_tar([*pictures, *more, ("k" * 701 + ".png", encode("png", image(3)))]))
    notes = []
    assert index(storage, note=notes.append) == Manifest.load(storage)
    assert notes == [
        "1 of 4 samples left out",
        "1 labels cannot be read (the first, of 0, is longer than 1,000 letters)",
    ]


def test_a_manifest_that_could_not_be_read_is_not_written(storage):
    storage.publish("a.tar", make_tar(members(range(3))))
    manifest = index(storage)
    before = storage.read_bytes("manifest.json")
    with pytest.raises(DataError, match=r"could not be read again .* shorten the names"):
        dataclasses.replace(manifest, classes=["c" * 1001, "1", "2"]).save(storage)
    assert storage.read_bytes("manifest.json") == before
