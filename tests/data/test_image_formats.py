import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebmscale.data.formats import open_source
from ebmscale.data.pack import pack
from ebmscale.data.split import select
from ebmscale.errors import ConfigError, DataError
from ebmscale.storage import Storage


def save(path, height=6, width=8, seed=0, mode="RGB"):
    """A random image; its pixels (height, width, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_folder_is_recursive_and_the_first_folder_is_the_class(tmp_path):
    cat = save(tmp_path / "cat" / "deep" / "er" / "1.png")
    save(tmp_path / "cat" / "2.PNG", seed=1)
    save(tmp_path / "a dog" / "1.png", seed=2)
    save(tmp_path / "none.png", seed=3)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    source = open_source("folder", str(tmp_path))
    records = {record.key.rsplit("-", 1)[0]: record for record in source.records()}
    assert (source.classes, source.counts, source.num_skipped) == (["a dog", "cat"], {"train": 4}, 2)
    assert {name: record.label for name, record in records.items()} == {
        "cat-deep-er-1": 1, "cat-2": 1, "a-dog-1": 0, "none": -1
    }  # fmt: skip
    np.testing.assert_array_equal(records["cat-deep-er-1"].load(), cat.transpose(2, 0, 1))


def test_train_and_test_folders_are_parts(tmp_path):
    for name in ("train/b/1.png", "train/a/1.png", "test/a/1.png"):
        save(tmp_path / name)
    source = open_source("folder", str(tmp_path))
    assert (source.classes, source.counts) == (["a", "b"], {"train": 2, "test": 1})
    assert [(record.label, record.part) for record in source.records()] == [(0, "train"), (1, "train"), (0, "test")]


@pytest.mark.parametrize(
    ("names", "parts", "classes"),
    [
        ("train/b/1 val/a/1 test/a/1", ["train", "validation", "test"], ["a", "b"]),
        ("Training/a/1 Testing/b/1", ["train", "test"], ["a", "b"]),
        ("train2017/1 val2017/1", ["train", "validation"], []),
        ("train/1 valid/2 valid/3", ["train", "validation", "validation"], []),
        ("cat/train/1 cat/test/2 dog/train/3", ["train", "train", "test"], ["cat", "dog"]),
        ("images/train/a/1 images/dev/b/2", ["train", "validation"], ["a", "b"]),
        ("train/x/1 bus/y/2", ["train", "train"], ["bus", "train"]),
        ("valid/1 invalid/2", ["train", "train"], ["invalid", "valid"]),
    ],
)
def test_parts_are_told_by_the_folders_names(tmp_path, names, parts, classes):
    for name in names.split():
        save(tmp_path / f"{name}.png")
    source = open_source("folder", str(tmp_path))
    assert ([record.part for record in source.records()], source.classes) == (parts, classes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("train/a/1 val/a/1 logo", r"logo\.png lies beside the folders train, val, which are parts"),
        ("cat/1 dog/1 test/1", "beside it cat, dog, whose part is not known"),
        ("bottle/train/good/1 bottle/test/bad/2 bottle/ground_truth/bad/3", "beside it ground_truth, whose part"),
        ("cat/1 dog/test/1", r"cat/1\.png lies beside the folders test"),
    ],
)
def test_images_whose_part_is_not_known_are_refused(tmp_path, names, message):
    for name in names.split():
        save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=message):
        open_source("folder", str(tmp_path))


@pytest.mark.parametrize("grey", [False, True])
def test_a_ramp_of_sixteen_bits_keeps_its_levels(tmp_path, grey):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    [record] = open_source("folder", str(tmp_path), grey=grey).records()
    assert record.load().shape == (1 if grey else 3, 16, 16)
    for channel in record.load():
        np.testing.assert_array_equal(channel.ravel(), np.arange(256))


def test_pictures_without_one_meaning_are_named(tmp_path):
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 9)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"a\.gif cannot become a picture of 8 bits: it has 2 frames"):
        open_source("folder", str(tmp_path))


def test_names_that_are_no_utf8(tmp_path, storage):
    folder = os.fsencode(tmp_path) + b"/set/caf\xe9"
    os.makedirs(folder)
    for name in (b"br\xfcck", b"br\xf6ck", b"plain"):
        save(Path(os.fsdecode(folder + b"/" + name + b".png")))
    manifest = pack(open_source("folder", str(tmp_path / "set")), storage)
    assert (manifest.classes, manifest.counts()) == (["caf\\xe9"], {"train": 3})
    assert len(select(manifest, "train", 0)) == 3
    (tmp_path / "set" / os.fsdecode(b"a\xe4.png")).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\\xe4\.png is not an image that can be read"):
        pack(open_source("folder", str(tmp_path / "set")), Storage.at(tmp_path / "other"))


def test_pipes_and_links_that_lead_nowhere_are_passed_over(tmp_path):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    source = open_source("folder", str(tmp_path))
    assert (source.counts, source.num_skipped) == ({"train": 1}, 2)


def test_keys_stay_when_files_are_added(tmp_path):
    save(tmp_path / "b.png")
    [before] = open_source("folder", str(tmp_path)).records()
    save(tmp_path / "a.png")
    save(tmp_path / "b.jpg")
    keys = [record.key for record in open_source("folder", str(tmp_path)).records()]
    assert before.key in keys
    assert len(set(keys)) == 3


def test_size_crops_the_centre_and_resizes(tmp_path):
    pixels = save(tmp_path / "wide.png", height=4, width=10)
    [record] = open_source("folder", str(tmp_path), size=4).records()
    np.testing.assert_array_equal(record.load(), pixels[:, 3:7].transpose(2, 0, 1))
    save(tmp_path / "tall.png", height=40, width=9)
    assert {r.load().shape for r in open_source("folder", str(tmp_path), size=5).records()} == {(3, 5, 5)}


def test_grey_palette_alpha_and_turned_images(tmp_path):
    save(tmp_path / "a.png", mode="L")
    save(tmp_path / "b.gif", mode="P")
    save(tmp_path / "c.png", mode="RGBA")
    turned = Image.new("RGB", (6, 8))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    turned.save(tmp_path / "d.jpg", exif=exif)
    for grey, shape in ((False, (3, 6, 8)), (True, (1, 6, 8))):
        source = open_source("folder", str(tmp_path), grey=grey)
        assert {record.load().shape for record in source.records()} == {shape} == {source.image_shape}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "1", "P", "I;16"])
def test_a_turned_picture_of_any_mode_is_set_upright(tmp_path, mode):
    upper = np.zeros((8, 8), np.uint16 if mode == "I;16" else np.uint8)
    upper[:4] = np.iinfo(upper.dtype).max
    picture = Image.fromarray(upper) if mode == "I;16" else Image.fromarray(upper).convert(mode)
    if mode.endswith("A"):
        picture.putpixel((0, 0), 0)  # transparent, so that it is laid on white
    exif = Image.Exif()
    exif[0x0112] = 3  # to be shown turned by a half
    picture.save(tmp_path / "a.png", exif=exif)
    (record,) = open_source("folder", str(tmp_path), grey=True).records()
    assert (record.load()[0, 4:] == 255).all()
    assert (record.load()[0, :4] == 0).all()


def test_folders_that_cannot_be_packed(tmp_path, storage):
    with pytest.raises(DataError, match=r"has no image below it \(0 other files\)"):
        open_source("folder", str(tmp_path))
    save(tmp_path / "set" / "a.png")
    with pytest.raises(DataError, match="is not a folder"):
        open_source("folder", str(tmp_path / "set" / "a.png"))
    with pytest.raises(DataError, match="is not on this machine"):
        open_source("folder", "s3://bucket/images")
    save(tmp_path / "set" / "b.png", height=7)
    with pytest.raises(DataError, match=r"Sample b-.* of set is uint8 \(3, 7, 8\).*give a size"):
        pack(open_source("folder", str(tmp_path / "set")), storage)


@pytest.mark.parametrize(
    ("num_bytes", "damage"), [(150, "truncated"), (0, r"\(its bytes are not those of a picture\)")]
)
def test_a_damaged_image_is_named(tmp_path, storage, num_bytes, damage):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:num_bytes])
    with pytest.raises(DataError, match=rf"b\.png is not an image that can be read.*{damage}"):
        pack(open_source("folder", str(tmp_path)), storage)


def test_the_most_frequent_size_is_the_set_s(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    save(tmp_path / "1.png", height=9)
    for number in range(2, 5):
        save(tmp_path / f"{number}.png", height=6)
    assert open_source("folder", str(tmp_path)).image_shape == (3, 6, 8)


def test_links_to_folders_are_followed_once(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "loop").symlink_to("..")
    (tmp_path / "b").symlink_to("a")
    source = open_source("folder", str(tmp_path))
    assert (source.counts, source.classes) == ({"train": 1}, ["a"])
    assert source.notes == ("2 link(s) to folders that are in the set already not followed",)


@pytest.mark.parametrize(("one", "other"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_look_alike_are_said(tmp_path, one, other):
    save(tmp_path / "train" / one / "1.png")
    save(tmp_path / "test" / other / "1.png")
    source = open_source("folder", str(tmp_path))
    assert len(source.classes) == 2
    assert [note.partition(" differ only in case")[0] for note in source.notes] == [
        "classes {!r} and {!r}".format(*source.classes)
    ]


def test_images_larger_than_can_be_decoded_are_not_made(tmp_path):
    save(tmp_path / "1.png")
    with pytest.raises(ConfigError, match="size 8193 is too large for images; the greatest is 8192"):
        open_source("folder", str(tmp_path), size=8193)


def test_options_are_for_images(tmp_path):
    with pytest.raises(ConfigError, match="idx takes no size; it is for folder and celeba"):
        open_source("idx", str(tmp_path), size=8)
    with pytest.raises(ConfigError, match="folder takes no attribute; it is for celeba"):
        open_source("folder", str(tmp_path), attribute="Smiling")
