"""Shards that others made: their manifest is learned by reading them once."""

import contextlib
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
from PIL import Image

from ebmscale.cli import cli
from ebmscale.data.formats import open_source
from ebmscale.data.index import index
from ebmscale.data.manifest import Manifest, verify
from ebmscale.data.pack import pack
from ebmscale.data.stream import read_split
from ebmscale.errors import DataError
from ebmscale.storage import Storage

SHAPE = (3, 5, 4)


def image(number, shape=SHAPE):
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def encode(ending, pixels):
    file = io.BytesIO()
    if ending == "npy":
        np.save(file, pixels)
    elif ending == "bin":
        file.write(pixels.tobytes())
    else:
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, {"png": "PNG", "jpg": "JPEG"}[ending])
    return file.getvalue()


class Link(str):
    """A member that is a link to this name."""


class SymbolicLink(Link):
    """A link by the path from its own folder."""


def make_tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            if isinstance(content, Link):
                header.type = tarfile.SYMTYPE if isinstance(content, SymbolicLink) else tarfile.LNKTYPE
                header.linkname = str(content)
                tar.addfile(header)
            else:
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return file.getvalue()


def labels_by_key(manifest):
    return {
        key: manifest.classes[label] if label >= 0 else None
        for shard in manifest.shards
        for key, label in zip(shard.keys, shard.labels, strict=True)
    }


def assert_same_images(storage, manifest, numbers):
    """What is read is what was stored, by the numbers of the keys."""
    images, _, keys = read_split(storage, manifest, "train", validation_fraction=0)
    assert sorted(keys) == sorted(numbers)
    for got, key in zip(images.numpy(), keys, strict=True):
        np.testing.assert_array_equal(got, image(numbers[key]))


def members(numbers, ending="png"):
    for number in numbers:
        yield f"some/dir/{number:04d}.{ending}", encode(ending, image(number))
        yield f"some/dir/{number:04d}.cls", str(number % 3).encode()


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
    assert [shard.labels for shard in manifest.shards] == [[1], [0, -1]]


def test_keys_that_repeat_get_the_shards_name(storage):
    for name in ("a", "b"):
        storage.publish(f"{name}.tar", make_tar(members(range(2))))
    keys = [key for shard in index(storage).shards for key in shard.keys]
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


@pytest.mark.parametrize("order", ["labels after", "labels before", "mixed", "labels in reverse"])
def test_labels_may_lie_anywhere_in_the_tar(storage, order):
    images = [(f"{number:03d}.png", encode("png", image(number))) for number in range(8)]
    labels = [(f"{number:03d}.cls", str(number % 3).encode()) for number in range(8)]
    entries = {
        "labels after": images + labels,
        "labels before": labels + images,
        "mixed": [entry for pair in zip(images, labels[4:] + labels[:4], strict=True) for entry in pair],
        "labels in reverse": labels[::-1] + images,
    }[order]
    storage.publish("s.tar", make_tar(entries))
    manifest = index(storage)
    assert labels_by_key(manifest) == {f"{number:03d}": str(number % 3) for number in range(8)}
    assert_same_images(storage, manifest, {f"{number:03d}": number for number in range(8)})


def test_links_count_as_what_they_lead_to(storage):
    entries = [
        ("./a/0.cls", b"1"),
        ("./a/0.png", encode("png", image(0))),
        ("./a/1.png", encode("png", image(1))),
        ("./a/1.cls", Link("./a/0.cls")),
        ("./b/2.png", Link("./a/1.png")),
        ("./b/2.cls", SymbolicLink("../a/1.cls")),
        ("./b/3.png", SymbolicLink("4.png")),  # which comes later
        ("./b/3.cls", SymbolicLink("2.cls")),
        ("./b/4.png", encode("png", image(4))),
    ]
    storage.publish("s.tar", make_tar(entries))
    manifest = index(storage)
    assert labels_by_key(manifest) == {"a/0": "1", "a/1": "1", "b/2": "1", "b/3": "1", "b/4": None}
    assert_same_images(storage, manifest, {"a/0": 0, "a/1": 1, "b/2": 1, "b/3": 4, "b/4": 4})
    assert manifest.shards[0].offsets == sorted(manifest.shards[0].offsets)


def test_links_that_lead_nowhere_are_said(storage, caplog):
    entries = [
        *members(range(3)),
        ("x.png", Link("gone.png")),
        ("y.png", encode("png", image(3))),
        ("y.cls", Link("no")),
    ]
    storage.publish("s.tar", make_tar([*entries, ("a.cls", Link("b.cls")), ("b.cls", Link("a.cls"))]))
    notes = []
    manifest = index(storage, note=notes.append)
    assert labels_by_key(manifest)["y"] is None
    assert notes == [
        "3 of 7 samples left out",
        "1 labels cannot be read (the first, of y, is a link to no, which the shard does not hold)",
    ]
    assert "x is a link to gone.png, which the shard does not hold" in caplog.text


@pytest.mark.parametrize(
    ("ending", "contents", "classes"),
    [
        ("json", [b'{"label": -1}', b'{"label": 0}', b'{"label": 1}'], ["-1", "0", "1"]),
        ("json", [b'{"label": 3.0}', b"3", b'{"cls": "3"}'], ["3", "3", "3"]),
        (
            "txt",
            [b"20240101000000", b"20240101000001", b"20240101000000"],
            ["20240101000000", "20240101000001", "20240101000000"],
        ),
        ("cls", [b"\xef\xbb\xbf0\r\n", b"0\n", b"1"], ["0", "0", "1"]),
        ("cls", [b"caf\xe9", "caf\u00e9".encode(), b"cafe"], ["caf\\xe9", "caf\u00e9", "cafe"]),
    ],
)
def test_labels_are_those_of_the_source(storage, ending, contents, classes):
    entries = [
        (f"{n}.{end}", data)
        for n, text in enumerate(contents)
        for end, data in (("png", encode("png", image(n))), (ending, text))
    ]
    storage.publish("s.tar", make_tar(entries))
    manifest = index(storage)
    assert list(labels_by_key(manifest).values()) == classes
    assert len(manifest.classes) <= 4


def test_one_label_of_several_counts(storage):
    png = encode("png", image(0))
    entries = [
        ("a.txt", b"a caption"),
        ("a.png", png),
        ("a.json", b'{"label": 1}'),
        ("a.cls", b"2"),
        ("b.json", b"[1]"),
        ("b.txt", b"3"),
        ("b.png", png),
    ]
    storage.publish("s.tar", make_tar(entries))
    assert labels_by_key(index(storage)) == {"a": "2", "b": "3"}


def test_labels_that_cannot_be_read_are_said(storage):
    png = encode("png", image(0))
    storage.publish(
        "s.tar",
        make_tar([("a.png", png), ("a.json", b'{"label": [1, 2]}'), ("b.png", png), ("b.json", b'{"width": 3}')]),
    )
    notes = []
    assert labels_by_key(index(storage, note=notes.append)) == {"a": None, "b": None}
    assert notes == ["1 labels cannot be read (the first, of a, is '[1, 2]', neither a whole number nor a name)"]


def test_captions_are_no_classes(storage):
    png = encode("png", image(0))
    entries = [
        (f"{number:02d}.{ending}", content)
        for number in range(12)
        for ending, content in (("png", png), ("txt", b"number %d" % number))
    ]
    storage.publish("s.tar", make_tar(entries))
    notes = []
    manifest = index(storage, note=notes.append)
    assert (manifest.classes, notes) == ([], ["12 texts (.txt) taken for captions, not for classes"])
    assert "no labels" in manifest.summary()


def test_numbers_of_each_sample_are_said_to_be_classes(storage):
    png = encode("png", image(0))
    entries = [
        (f"{number:02d}.{ending}", content)
        for number in range(12)
        for ending, content in (("png", png), ("cls", b"%d" % number))
    ]
    storage.publish("s.tar", make_tar(entries))
    notes = []
    assert "12 class(es)" in index(storage, note=notes.append).summary()
    assert notes == ["nearly every one of 12 labels is a class of its own; see whether they are classes"]


def test_a_field_between_key_and_ending(storage):
    entries = []
    for number in range(3):
        entries += [
            (f"s{number}.input.png", encode("png", image(number))),
            (f"s{number}.target.png", encode("png", image(number, (3, 2, 2)))),
        ]
        entries += [(f"s{number}.label.cls", b"1")]
    storage.publish("s.tar", make_tar(entries))
    notes = []
    manifest = index(storage, note=notes.append)
    assert labels_by_key(manifest) == dict.fromkeys(["s0", "s1", "s2"], "1")
    assert notes == ["3 further images of these samples not used"]
    assert_same_images(storage, manifest, {f"s{number}": number for number in range(3)})


def test_dots_that_end_the_key_too_early_are_named(storage):
    storage.publish("s.tar", make_tar((f"cat.{number}.png", encode("png", image(number))) for number in range(5)))
    with pytest.raises(
        DataError, match=r"have dots, and a key ends at the first dot, so that cat\.0\.png and cat\.1\.png"
    ):
        index(storage)


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", (1, 5, 4)), ("L", (1, 5, 4)), ("LA", (1, 5, 4)), ("P", SHAPE), ("RGBA", SHAPE), ("I;16", (1, 5, 4))],
)
def test_pictures_of_other_modes_are_read_as_what_they_show(storage, mode, shape):
    pictures = []
    for number in range(3):
        picture = Image.fromarray(np.where(image(number, (5, 4)) > 127, 255, 0).astype(np.uint8))
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        pictures.append(picture if mode == "I;16" else picture.convert("RGB").convert(mode))
    files = [io.BytesIO() for _ in pictures]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file, "PNG")
    storage.publish("s.tar", make_tar((f"{number}.png", file.getvalue()) for number, file in enumerate(files)))
    manifest = index(storage)
    assert manifest.image_shape == shape
    images, _, keys = read_split(storage, manifest, "train", validation_fraction=0)
    for got, key in zip(images.numpy(), keys, strict=True):
        np.testing.assert_array_equal(got, np.broadcast_to(np.where(image(int(key), (5, 4)) > 127, 255, 0), shape))


def turned():
    file, picture = io.BytesIO(), Image.new("RGB", (4, 5))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


def animated():
    file, picture = io.BytesIO(), Image.new("RGB", (4, 5))
    picture.save(file, "PNG", save_all=True, append_images=[Image.new("RGB", (4, 5), (9, 9, 9))])
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("0.jpg", turned(), "is to be shown turned"),
        ("0.png", animated(), "cannot be used: it has 2 frames"),
        ("0.png", encode("jpg", image(0)), r"is a JPEG file that is called \.png"),
        ("0.npy", encode("npy", image(0).astype("u2")), r"is an array of <u2 \(3, 5, 4\) in C order"),
        ("0.npy", encode("npy", image(0).astype(">f4")), "is an array of >f4"),
        ("0.npy", encode("npy", np.asfortranarray(image(0))), r"is an array of .* in Fortran order"),
        ("0.npy", encode("npy", np.full(SHAPE, np.nan, "f4")), "holds NaN or infinity"),
        ("0.npy", b"no array", r"is no \.npy array"),
        ("0.webp", b"", r"has no image, only \.webp"),
    ],
)
def test_images_are_refused_for_the_reason_that_is_so(storage, name, content, reason):
    storage.publish("s.tar", make_tar([(name, content)]))
    with pytest.raises(DataError, match=rf"\(of s\.tar: 0 {reason}"):
        index(storage)


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
