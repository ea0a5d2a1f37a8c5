"""What every format gives: a `Source` of `Record`s. Shapes: N samples, C channels, H height, W width."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from ebmscale.address import Address
from ebmscale.data.labels import number_labels
from ebmscale.data.names import printable
from ebmscale.errors import DataError


class Record(NamedTuple):
    """One sample: a key that is unique in the set and has no dot, the image, the label (-1: none), the part."""

    key: str
    image: np.ndarray | Callable[[], np.ndarray]  # (C, H, W), or what reads it, from any thread
    label: int
    part: str  # one of `parts.PARTS`, the official split

    def load(self) -> np.ndarray:
        """The image, (C, H, W); DataError if its file is damaged."""
        return self.image if isinstance(self.image, np.ndarray) else self.image()


@dataclass(frozen=True)
class Source:
    """A data set in its official files.

    Attributes:
        name: what its shards are called; letters, digits, `_` and `-`.
        format: the key in `FORMATS`.
        image_shape: (C, H, W) of images; arrays may have any shape.
        dtype: NumPy's name of the images' type: "uint8", or "float32" and its like for arrays.
        classes: the label's names, empty if samples have no labels.
        counts: number of records of each part, in the order in which they come.
        records: starts the iteration over all records, part after part, always in the same order.
        num_skipped: files that were skipped because they are not images.
        files: the local files of the source, by which `packed_manifest` sees whether it changed; empty if unknown.
        notes: what a user should know about how the files were read, a phrase each.
        posteriors: whether samples are latents as means and standard deviations (2, ...).
    """

    name: str
    format: str
    image_shape: tuple[int, ...]
    dtype: str
    classes: list[str]
    counts: dict[str, int]
    records: Callable[[], Iterator[Record]]
    num_skipped: int = 0
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    posteriors: bool = False


class Pairs:
    """Means and standard deviations as one array (N, 2, ...), of which a sample is put together when it is read.

    Args:
        mean: (N, ...).
        std: (N, ...).
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray):
        self._mean, self._std = mean, std
        self.dtype = np.promote_types(mean.dtype, std.dtype)
        self.shape = (len(mean), 2, *mean.shape[1:])

    def __len__(self) -> int:
        return len(self._mean)

    def __getitem__(self, number: int) -> np.ndarray:
        return np.stack([self._mean[number], self._std[number]]).astype(self.dtype, copy=False)


class Arrays(NamedTuple):
    """A stretch of samples of one part that lie in two arrays; keys are the prefix and the number within it."""

    part: str
    prefix: str
    images: np.ndarray | Pairs  # (N, C, H, W)
    labels: np.ndarray | None  # (N,)

    def records(self) -> Iterator[Record]:
        """One record for each of the N samples."""
        for number in range(len(self.images)):
            label = -1 if self.labels is None else int(self.labels[number])
            yield Record(f"{self.prefix}-{number:06d}", self.images[number], label, self.part)


def source_of_arrays(
    name: str, format: str, stretches: list[Arrays], classes: list[str] | None = None, files: tuple[Path, ...] = ()
) -> Source:
    """A source of arrays in memory, or mapped into it; without `classes` they are the labels' numbers."""
    if classes is None:
        classes, stretches = _numbered(stretches)
    counts: dict[str, int] = {}
    for stretch in stretches:
        counts[stretch.part] = counts.get(stretch.part, 0) + len(stretch.images)
    first = stretches[0].images

    def records() -> Iterator[Record]:
        for stretch in stretches:
            yield from stretch.records()

    return Source(name, format, first.shape[1:], first.dtype.name, classes, counts, records, files=files)


def _numbered(stretches: list[Arrays]) -> tuple[list[str], list[Arrays]]:
    """The classes' names, and the stretches with labels that are indices into them."""
    labels = [stretch.labels for stretch in stretches if stretch.labels is not None]
    values = np.unique(np.concatenate(labels)) if labels else np.empty(0, np.int64)
    classes, numbers = number_labels(values.tolist())
    index = np.array(numbers, np.int64)
    return classes, [
        stretch if stretch.labels is None
        else stretch._replace(labels=index[np.searchsorted(values, stretch.labels)])
        for stretch in stretches
    ]  # fmt: skip


def local_source(src: str) -> Path:
    """The path of a source on this machine; DataError if there is none."""
    try:
        address = Address.parse(src)
    except ValueError as error:
        raise DataError(f"{error}.") from None
    if not address.is_local:
        raise DataError(f"{src} is not on this machine; copy the files to a folder here and give that.")
    path = Path(address.real)
    if not path.exists():
        raise DataError(f"{printable(path)} does not exist; give the folder or file that holds the data.")
    if not (path.is_file() or path.is_dir()):
        raise DataError(f"{printable(path)} is neither a file nor a folder; give the one that holds the data.")
    return path


def check_file(path: Path) -> None:
    """Refuses a folder, and a pipe or a device, whose reading might never end; DataError says what it is."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise DataError(f"{printable(path)} is {kind}, but a file is needed; move it away.")


def set_name(path: str | os.PathLike[str], default: str) -> str:
    """A set's name from the last part of its address without ending: letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", PurePath(os.path.abspath(path)).stem).strip("-") or default
