"""Reads a foreign WebDataset tar once: where its images lie, what they are, and their labels.

A sample may have several images (KEY.input.png, KEY.target.png) and several labels; a link counts as its target.
Images and labels of a sample may lie anywhere in the tar. Shapes: C channels, H height, W width.
"""

import io
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from ebmscale.data.decode import Shape, decode_raw
from ebmscale.data.labels import ENDINGS as LABEL_ENDINGS
from ebmscale.data.labels import LABEL_BYTES, Label, LabelError, read_label
from ebmscale.data.pixels import channels_first, check_size, damage, orientation, to_eight_bits
from ebmscale.data.tars import Member, Name, SequentialFile, tar_members
from ebmscale.errors import DataError
from ebmscale.storage import Storage

ENCODINGS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "npy": "raw", "bin": "raw"}  # by ending
IMAGE_BYTES = 256 << 20  # of one image's file
_LIMITS = dict.fromkeys(ENCODINGS, IMAGE_BYTES) | dict.fromkeys(LABEL_ENDINGS, LABEL_BYTES)
_LONGEST_KEY = 700  # letters; a manifest holds 1,000, and the shard's name may come before a key
_FORMATS = {"png": ("PNG",), "jpeg": ("JPEG", "MPO")}  # Pillow's names


class Kind(NamedTuple):
    """What all images of a set share: the field of their names (jpeg counts as jpg), shape (C, H, W) and type."""

    field: str
    shape: Shape
    dtype: str

    @property
    def encoding(self) -> str:
        """How the payload becomes an image."""
        return ENCODINGS[self.field.rpartition(".")[2]]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape} .{self.field}"


class ImageMember(NamedTuple):
    """An image in the tar: what it is, and where."""

    kind: Kind
    offset: int
    size: int
    crc32: int


@dataclass(slots=True)
class Sample:
    """What a tar holds of one key.

    Attributes:
        images: by field, an image or the reason why it cannot be used.
        labels: by field, a label or the reason why it cannot be read.
        others: fields that are neither.
    """

    images: dict[str, ImageMember | str] = field(default_factory=dict)
    labels: dict[str, Label | LabelError | None] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def image(self, kind: Kind) -> ImageMember | str:
        """The image of that kind, or why there is none."""
        found = self.images.get(kind.field)
        if isinstance(found, ImageMember):
            return found if found.kind == kind else f"is {found.kind}, but the set is {kind}"
        if found is not None:
            return found
        there = [*self.images, *self.labels, *self.others]
        return f"has no image .{kind.field}, only {', '.join(f'.{name}' for name in there[:4])}"

    def label(self) -> tuple[str, Label | LabelError | None]:
        """Ending and value of the label that counts; ("", None) if there is none."""
        ranked = sorted(self.labels, key=lambda name: (LABEL_ENDINGS.index(_ending(name)), name.count(".")))
        values = [(_ending(name), self.labels[name]) for name in ranked]
        read = [value for value in values if value[1] is not None and not isinstance(value[1], LabelError)]
        return next(iter(read or [value for value in values if value[1] is not None]), ("", None))


@dataclass
class Scan:
    """A tar that was read: its samples by key, in the order of their first members, and their kinds, each once."""

    file: str
    samples: dict[str, Sample] = field(default_factory=dict)
    kinds: dict[Kind, Kind] = field(default_factory=dict)
    num_bytes: int = 0
    sha256: str = ""


def scan(storage: Storage, file: str, shape: Shape | None) -> Scan:
    """Read a tar.

    Args:
        storage: where it is.
        file: its name.
        shape: (C, H, W) of `.bin` members (uint8); None: they cannot be used.

    Raises:
        DataError: it is truncated or no tar, or a file is in it twice.
        StorageError: the storage fails.
    """
    result, source, links = Scan(file), SequentialFile(storage, file), []
    try:
        for member in tar_members(source, _LIMITS):
            if member.link is not None:
                links.append((member.name, member.link))
            elif not _add(result, member, shape):
                raise DataError(
                    f"Shard {storage.url_of(file)} holds a key twice ({'.'.join(member.name)}); "
                    "give every sample a key of its own."
                )
    except tarfile.TarError as error:
        raise DataError(
            f"Shard {storage.url_of(file)} cannot be read as a tar ({error}); get it again or remove it."
        ) from error
    _follow(result.samples, links)
    result.num_bytes, result.sha256 = source.position, source.digest.hexdigest()
    return result


def _add(result: Scan, member: Member, shape: Shape | None) -> bool:
    """Note a file in its sample; False if it is there already."""
    sample, name = result.samples.setdefault(member.name.key, Sample()), member.name.field
    if member.name.ending in ENCODINGS:
        name = _image_field(name)
        if name in sample.images:
            return False
        try:
            found = _describe(member, name, shape)
            sample.images[name] = found._replace(kind=result.kinds.setdefault(found.kind, found.kind))
        except ValueError as error:
            sample.images[name] = str(error)
    elif member.name.ending in LABEL_ENDINGS:
        if name in sample.labels:
            return False
        try:
            sample.labels[name] = read_label(member.name.ending, member.content)
        except LabelError as error:
            sample.labels[name] = error
    else:
        sample.others = (*sample.others, name)
    return True


def _follow(samples: dict[str, Sample], links: list[tuple[Name, Name]]) -> None:
    """Replace links by their targets, also through other links; a link without a target becomes the reason."""
    left = len(links) + 1
    while links and len(links) < left:
        left = len(links)
        links = [(name, target) for name, target in links if not _copy(samples, name, target)]
    for name, target in links:
        reason = f"is a link to {'.'.join(target).rstrip('.')}, which the shard does not hold"
        sample = samples.setdefault(name.key, Sample())
        if name.ending in ENCODINGS:
            sample.images.setdefault(_image_field(name.field), reason)
        elif name.ending in LABEL_ENDINGS:
            sample.labels.setdefault(name.field, LabelError(reason))


def _copy(samples: dict[str, Sample], name: Name, target: Name) -> bool:
    """Replaces a link by its target; False if the target is not known."""
    found, sample = samples.get(target.key), samples.setdefault(name.key, Sample())
    image = found.images.get(_image_field(target.field)) if found else None
    if name.ending in ENCODINGS and image is not None:
        if isinstance(image, ImageMember):
            image = image._replace(kind=image.kind._replace(field=_image_field(name.field)))
        sample.images.setdefault(_image_field(name.field), image)
        return True
    if name.ending in LABEL_ENDINGS and found and target.field in found.labels:
        sample.labels.setdefault(name.field, found.labels[target.field])
        return True
    return name.ending not in ENCODINGS and name.ending not in LABEL_ENDINGS


def _ending(name: str) -> str:
    return name.rpartition(".")[2]


def _image_field(name: str) -> str:
    return f"{name.removesuffix('jpeg')}jpg" if _ending(name) == "jpeg" else name


def _describe(member: Member, name: str, shape: Shape | None) -> ImageMember:
    """What an image's file holds, decoded as in training; ValueError says why it cannot be used."""
    content, skipped = member.content, 0
    if len(content) > IMAGE_BYTES:
        raise ValueError(f"is larger than {IMAGE_BYTES >> 20} MB")
    if len(member.name.key) > _LONGEST_KEY:
        raise ValueError(f"has a name of more than {_LONGEST_KEY} letters")
    if member.is_sparse:
        raise ValueError("is stored with holes (a sparse file); write the tar without --sparse")
    if member.name.ending == "bin":
        if shape is None:
            raise ValueError("is a .bin image, whose shape is not known; give its C, H, W")
        kind = Kind(name, shape, "uint8")
        decode_raw(content, shape)
    elif member.name.ending == "npy":
        kind, skipped = _describe_npy(content, name)
    else:
        kind = Kind(name, _picture_shape(content, member.name.ending), "uint8")
    payload = memoryview(content)[skipped:]
    return ImageMember(kind, member.offset + skipped, len(payload), zlib.crc32(payload))


def _picture_shape(content: bytes, ending: str) -> Shape:
    """(C, H, W) of a PNG or JPEG file as it is decoded."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format not in _FORMATS[ENCODINGS[ending]]:
                raise ValueError(f"is a {image.format} file that is called .{ending}")
            check_size(image)
            if orientation(image) != 1:
                raise ValueError("is stored rotated (its EXIF orientation says so); store it upright")
            pixels = _eight_bits(image)
    except ValueError:
        raise
    except Exception as error:  # what a damaged image raises has no common class
        raise ValueError(f"is not a .{ending} image ({damage(error)})") from error
    return channels_first(pixels).shape


def _eight_bits(image: Image.Image) -> np.ndarray:
    image.load()
    try:
        return np.asarray(to_eight_bits(image))
    except ValueError as error:
        raise ValueError(f"cannot be used: {error}") from error


def _describe_npy(content: bytes, name: str) -> tuple[Kind, int]:
    """What a .npy file holds, and the bytes of its header."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, transposed, dtype = read(file)
    except Exception as error:  # what a damaged header raises has no common class
        raise ValueError(f"is not an .npy array ({error})") from error
    plain = dtype.newbyteorder("=").name in ("uint8", "float32") and dtype.byteorder != ">"
    if len(shape) != 3 or 0 in shape or transposed or not plain:
        order = "Fortran" if transposed else "C"
        raise ValueError(
            f"is an array of {dtype.str} {shape} in {order} order, not uint8 or float32 of C, H, W in C order"
        )
    numbers = decode_raw(content[file.tell() :], shape, dtype.name)
    if dtype.kind == "f" and not np.isfinite(numbers).all():
        raise ValueError("holds NaN or infinity")
    return Kind(name, shape, dtype.name), file.tell()
