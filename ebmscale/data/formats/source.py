"""What every format gives: a `Source` of `Record`s. Shapes: N samples, C channels, H height, W width."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from ebmscale.address import Address
from ebmscale.errors import DataError


class Record(NamedTuple):
    """One sample: a key that is unique in the set and has no dot, the image, the label (-1: none), the part."""

    key: str
    image: np.ndarray | Callable[[], np.ndarray]  # (C, H, W), or what reads it, from any thread
    label: int
    part: str  # "train" or "test", the official split

    def load(self) -> np.ndarray:
        """The image, (C, H, W); DataError where its file is damaged."""
        return self.image if isinstance(self.image, np.ndarray) else self.image()


@dataclass(frozen=True)
class Source:
    """A data set in its official files.

    Attributes:
        name: what its shards are called; letters, digits, `_` and `-`.
        format: the key in `FORMATS`.
        image_shape: (C, H, W) of images; arrays may have any shape.
        dtype: NumPy's name of the images' type: "uint8", or "float32" and its like for arrays.
        classes: the label's names, empty where samples have no labels.
        counts: number of records of each part, in the order in which they come.
        records: starts the iteration over all records, part after part, always in the same order.
        num_skipped: files that were passed over because they are no images.
    """

    name: str
    format: str
    image_shape: tuple[int, ...]
    dtype: str
    classes: list[str]
    counts: dict[str, int]
    records: Callable[[], Iterator[Record]]
    num_skipped: int = 0


class Arrays(NamedTuple):
    """A stretch of samples of one part that lie in two arrays; keys are the prefix and the number within it."""

    part: str
    prefix: str
    images: np.ndarray  # (N, C, H, W)
    labels: np.ndarray | None  # (N,)

    def records(self) -> Iterator[Record]:
        """One record for each of the N samples."""
        for number in range(len(self.images)):
            label = -1 if self.labels is None else int(self.labels[number])
            yield Record(f"{self.prefix}-{number:06d}", self.images[number], label, self.part)


def source_of_arrays(name: str, format: str, stretches: list[Arrays], classes: list[str] | None = None) -> Source:
    """A source of arrays in memory, or mapped into it; without `classes` they are the numbers up to the last label."""
    if classes is None:
        tops = [int(stretch.labels.max()) for stretch in stretches if stretch.labels is not None]
        classes = [str(label) for label in range(1 + max(tops, default=-1))]
    counts: dict[str, int] = {}
    for stretch in stretches:
        counts[stretch.part] = counts.get(stretch.part, 0) + len(stretch.images)
    first = stretches[0].images

    def records() -> Iterator[Record]:
        for stretch in stretches:
            yield from stretch.records()

    return Source(name, format, first.shape[1:], first.dtype.name, classes, counts, records)


def local_source(src: str) -> Path:
    """The path of a source on this machine; DataError where there is none."""
    try:
        address = Address.parse(src)
    except ValueError as error:
        raise DataError(f"{error}.") from None
    if not address.is_local:
        raise DataError(f"{src} is not on this machine; copy the files to a folder here and give that.")
    path = Path(address.real)
    if not path.exists():
        raise DataError(f"{path} does not exist; give the folder or file that holds the data.")
    return path


def set_name(path: str | os.PathLike[str], default: str) -> str:
    """A set's name from the last part of its address without ending: letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", PurePath(os.path.abspath(path)).stem).strip("-") or default
