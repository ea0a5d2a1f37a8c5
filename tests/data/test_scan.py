"""What the images in a tar of others are: read as what they show, or refused for the reason that is so."""

import io

import numpy as np
import pytest
from PIL import Image

from ebmscale.data.chunks import read_split
from ebmscale.data.index import index
from ebmscale.errors import DataError
from tests.data.tar_files import (
    SHAPE,
    encode,
    image,
    make_tar,
)


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
        ("0.jpg", turned(), "is stored rotated"),
        ("0.png", animated(), "cannot be used: it has 2 frames"),
        ("0.png", encode("jpg", image(0)), r"is a JPEG file that is called \.png"),
        ("0.npy", encode("npy", image(0).astype("u2")), r"is an array of <u2 \(3, 5, 4\) in C order"),
        ("0.npy", encode("npy", image(0).astype(">f4")), "is an array of >f4"),
        ("0.npy", encode("npy", np.asfortranarray(image(0))), r"is an array of .* in Fortran order"),
        ("0.npy", encode("npy", np.full(SHAPE, np.nan, "f4")), "holds NaN or infinity"),
        ("0.npy", b"no array", r"is not an \.npy array"),
        ("0.webp", b"", r"has no image, only \.webp"),
    ],
)
def test_images_are_refused_for_the_reason_that_is_so(storage, name, content, reason):
    storage.publish("s.tar", make_tar([(name, content)]))
    with pytest.raises(DataError, match=rf"\(of s\.tar: 0 {reason}"):
        index(storage)
