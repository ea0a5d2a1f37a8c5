"""SVHN's cropped digits in MATLAB files of version 5. Shapes: N samples of (3, 32, 32)."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ebmscale.data.compressed import check_expansion
from ebmscale.data.formats.source import Arrays, Record, Source, check_file, local_source
from ebmscale.errors import DataError

_SIDE = 32
_PARTS = {"train": "train", "test": "test", "extra": "train"}  # file's prefix -> part; a part's files are neighbours
_ORDER = ("train", "extra", "test")


def svhn(src: str) -> Source:
    """A folder with train_32x32.mat, test_32x32.mat and, if it is there, extra_32x32.mat, which joins part train.

    The label 10 stands for the digit 0 and becomes 0. One file is held in memory at a time.

    Raises:
        DataError: a file is missing, damaged, or of another layout.
    """
    folder = local_source(src)
    files = {prefix: folder / f"{prefix}_{_SIDE}x{_SIDE}.mat" for prefix in _ORDER}
    for prefix in ("train", "test"):
        if not files[prefix].exists():
            raise DataError(f"{files[prefix]} is missing; get it with `ebmscale fetch svhn {folder}`.")
    files = {prefix: file for prefix, file in files.items() if file.exists()}
    counts: dict[str, int] = {}
    for prefix, file in files.items():
        counts[_PARTS[prefix]] = counts.get(_PARTS[prefix], 0) + _num_samples(file)

    def records() -> Iterator[Record]:
        for prefix, file in files.items():
            images, labels = _read(file)
            yield from Arrays(_PARTS[prefix], prefix, images, labels).records()

    shape = (3, _SIDE, _SIDE)
    classes = [str(digit) for digit in range(10)]
    return Source("svhn", "svhn", shape, "uint8", classes, counts, records, files=tuple(files.values()))


def _num_samples(file: Path) -> int:
    """N, from the file's headers: X is (32, 32, 3, N) bytes and y is (N, 1)."""
    from scipy.io import whosmat  # noqa: PLC0415  a slow import that only this format needs

    check_file(file)
    try:
        found = {name: (shape, kind) for name, shape, kind in whosmat(file)}
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise _damaged(file, error) from error
    (shape, kind), (label_shape, _) = found.get("X", ((), "")), found.get("y", ((), ""))
    if shape[:3] != (_SIDE, _SIDE, 3) or kind != "uint8" or label_shape != (*shape[3:], 1) or not shape[3]:
        layout = ", ".join(f"{name} {kind} {shape}" for name, (shape, kind) in found.items()) or "nothing"
        raise DataError(
            f"{file} holds {layout}, but X uint8 (32, 32, 3, N) and y (N, 1) are needed; get the cropped digits of "
            "SVHN."
        )
    check_expansion(math.prod(shape), file.stat().st_size, str(file))
    return shape[3]


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8, a view of the file's order, and labels (N,) from 0 to 9."""
    from scipy.io import loadmat  # noqa: PLC0415

    try:
        content = loadmat(file, variable_names=("X", "y"))
    except Exception as error:  # as above
        raise _damaged(file, error) from error
    if content["X"].dtype != np.uint8 or content["y"].dtype.kind not in "uif":
        raise DataError(f"{file} holds {content['X'].dtype} and {content['y'].dtype}, not images and labels.")
    labels = content["y"].reshape(-1).astype(np.int64) % 10
    if content["y"].min() < 1 or content["y"].max() > 10:
        raise DataError(f"{file} has labels outside 1 to 10; get the cropped digits of SVHN.")
    return content["X"].transpose(3, 2, 0, 1), labels


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is not a MATLAB file of version 5, or damaged ({error}); get the official file again.")
