"""Official files to records: each format is a function from a source's address to a `Source`.

A new format is one function and one line in `FORMATS`. A function checks its files before it returns, so that
nothing is written when a file is missing or damaged. Shapes: N samples, C channels, H height, W width.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from ebmscale.errors import ConfigError, DataError
from ebmscale.storage import Storage


class Record(NamedTuple):
    """One sample: a key that is unique in the set and has no dot, the image, the label (-1: none), the part."""

    key: str
    image: np.ndarray  # uint8 (C, H, W)
    label: int
    part: str  # "train" or "test", the official split


@dataclass(frozen=True)
class Source:
    """A data set in its official files.

    Attributes:
        name: what its shards are called; letters, digits, `_` and `-`.
        format: the key in `FORMATS`.
        image_shape: (C, H, W).
        dtype: NumPy's name of the images' type; "uint8".
        classes: the label's names, empty where samples have no labels.
        counts: number of records of each part, in the order in which they come.
        records: starts the iteration over all records, part after part.
    """

    name: str
    format: str
    image_shape: tuple[int, int, int]
    dtype: str
    classes: list[str]
    counts: dict[str, int]
    records: Callable[[], Iterator[Record]]


class _Part(NamedTuple):
    images: np.ndarray  # uint8 (N, C, H, W)
    labels: np.ndarray  # (N,)


def _source(name: str, format: str, parts: dict[str, _Part]) -> Source:
    """A source of arrays in memory; keys are the part and the number within it."""

    def records() -> Iterator[Record]:
        for part, (images, labels) in parts.items():
            for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                yield Record(f"{part}-{number:06d}", image, label, part)

    first = next(iter(parts.values())).images
    num_classes = 1 + max(int(part.labels.max()) for part in parts.values())
    counts = {name: len(part.labels) for name, part in parts.items()}
    classes = [str(label) for label in range(num_classes)]
    return Source(name, format, first.shape[1:], first.dtype.name, classes, counts, records)


def digits(src: str) -> Source:
    """scikit-learn's embedded handwritten digits, 1797 of (1, 8, 8), all in part train; `src` plays no role.

    Intensities 0..16 become round(v * 255 / 16).
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  a slow import that only this format needs

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return _source("digits", "digits", {"train": _Part(images, bunch.target)})


def idx(src: str) -> Source:
    """A data set of the MNIST family: a folder (any storage) with the official four idx files, gzipped or not.

    Part train is train-*, part test is t10k-*; the set is called as the folder is.

    Raises:
        DataError: a file is missing, damaged, or does not fit the others.
    """
    storage = Storage.at(src)
    parts = {part: _idx_part(storage, prefix) for part, prefix in (("train", "train"), ("test", "t10k"))}
    shapes = {part.images.shape[1:] for part in parts.values()}
    if len(shapes) > 1:
        raise DataError(f"The train and t10k images in {src} differ in shape; get all four files of one data set.")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePath(storage.url).name).strip("-")
    return _source(name or "idx", "idx", parts)


def _idx_part(storage: Storage, prefix: str) -> _Part:
    images = _read_idx(storage, f"{prefix}-images-idx3-ubyte", num_dims=3)
    labels = _read_idx(storage, f"{prefix}-labels-idx1-ubyte", num_dims=1)
    if len(images) != len(labels) or not len(labels):
        raise DataError(
            f"The {prefix} files in {storage.url} hold {len(images)} images and {len(labels)} labels; "
            "get the files again."
        )
    return _Part(images[:, None], labels)


def _read_idx(storage: Storage, name: str, num_dims: int) -> np.ndarray:
    """An idx file of unsigned bytes as an array; its header and its size must agree.

    Header: two zero bytes, 0x08 for unsigned byte, the number of dimensions, then each dimension as uint32; big endian.
    """
    name, data = _read_plain_or_gzip(storage, name)
    header_bytes = 4 + 4 * num_dims
    magic = data[:4]
    if magic != bytes([0, 0, 8, num_dims]) or len(data) < header_bytes:
        raise DataError(
            f"{storage.url_of(name)} is not an idx file of {num_dims}-dimensional unsigned bytes "
            f"(it begins with {magic.hex()}); get the official file again."
        )
    shape = struct.unpack(f">{num_dims}I", data[4:header_bytes])
    if len(data) - header_bytes != math.prod(shape):
        raise DataError(
            f"{storage.url_of(name)} holds {len(data) - header_bytes} bytes of data where its header says "
            f"{math.prod(shape)}; get the official file again."
        )
    return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(shape)


def _read_plain_or_gzip(storage: Storage, name: str) -> tuple[str, bytes]:
    """The name found (with or without .gz) and the uncompressed content."""
    if storage.exists(name):
        return name, storage.read_bytes(name)
    zipped = f"{name}.gz"
    if not storage.exists(zipped):
        raise DataError(
            f"{storage.url} has neither {name} nor {zipped}; "
            "give the folder that holds the four official idx files of the MNIST family."
        )
    try:
        return zipped, gzip.decompress(storage.read_bytes(zipped))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{storage.url_of(zipped)} is a damaged gzip file ({error}); get it again.") from error


FORMATS: dict[str, Callable[[str], Source]] = {"digits": digits, "idx": idx}


def open_source(format: str, src: str) -> Source:
    """The source of a format by name; ConfigError where there is no such format."""
    if format not in FORMATS:
        raise ConfigError(f"There is no data format {format!r}; choose one of {', '.join(FORMATS)}.")
    return FORMATS[format](src)
