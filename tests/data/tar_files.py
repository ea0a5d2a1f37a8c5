"""WebDataset tars of small images, as others write them."""

import io
import tarfile

import numpy as np
from PIL import Image

from ebmscale.data.chunks import read_split
from tests.data.indexed import indexed

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
        for shard in indexed(manifest)
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
