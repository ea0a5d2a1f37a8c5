"""CIFAR-10 in both official versions, unpacked or as the archive. Shapes: N samples of (3, 32, 32).

The python version's files are pickles. They are read by an unpickler that knows bytes, text, numbers, lists,
dictionaries and arrays of bytes; anything else, so any code too, is refused.
"""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ebmscale.data.formats.source import Arrays, Source, check_file, local_source, source_of_arrays
from ebmscale.data.tars import Header
from ebmscale.errors import DataError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = {
    "train": [f"data_batch_{number}" for number in range(1, 6)],
    "test": ["test_batch"],
}
SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_FOLDERS = {"cifar-10-batches-py": "", "cifar-10-batches-bin": ".bin"}  # in the archives -> ending of the batches
_ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")

BATCH_BYTES = 64 << 20  # of a file; the official ones have 31 MB

Batch = tuple[np.ndarray, np.ndarray]  # images (N, 3, 32, 32) uint8, labels (N,)


def cifar10(src: str) -> Source:
    """The python or the binary version: its archive, the folder inside, or the folder that holds either.

    The whole set (184 MB) is held in memory.

    Raises:
        DataError: a batch is missing, damaged, or of another layout.
    """
    path = local_source(src)
    batches = _read_archive(path) if path.is_file() else _read_folder(path)
    stretches = []
    for part, names in BATCHES.items():
        images, labels = (np.concatenate(arrays) for arrays in zip(*(batches[name] for name in names), strict=True))
        stretches.append(Arrays(part, part, images, labels))
    return source_of_arrays("cifar10", "cifar10", stretches, CLASSES)


def _read_folder(folder: Path) -> dict[str, Batch]:
    for place in (folder, *(folder / name for name in _FOLDERS)):
        for ending in _FOLDERS.values():
            if (place / f"{BATCHES['train'][0]}{ending}").exists():
                return _read_batches(place, ending)
    archive = next((folder / name for name in _ARCHIVES if (folder / name).exists()), None)
    if archive is None:
        raise DataError(
            f"{folder} has neither {BATCHES['train'][0]}, {BATCHES['train'][0]}.bin nor {_ARCHIVES[0]}; "
            f"get the set with `ebmscale fetch cifar10 {folder}`."
        )
    return _read_archive(archive)


def _read_batches(folder: Path, ending: str) -> dict[str, Batch]:
    batches = {}
    for name in (name for names in BATCHES.values() for name in names):
        file = folder / f"{name}{ending}"
        if not file.exists():
            raise DataError(f"{file} is missing; get the official archive of CIFAR-10 again.")
        check_file(file)
        _check_size(file.stat().st_size, str(file))
        batches[name] = _PARSERS[ending](file.read_bytes(), str(file))
    return batches


def _read_archive(archive: Path) -> dict[str, Batch]:
    """Read the batches out of the tar.gz in one pass; nothing is written to disk."""
    wanted = {f"{name}{ending}": (name, ending) for names in BATCHES.values() for name in names for ending in _PARSERS}
    batches = {}
    try:
        with tarfile.open(archive, "r:*", tarinfo=Header) as tar:
            for member in tar:
                name, ending = wanted.get(Path(member.name).name, ("", ""))
                content = tar.extractfile(member) if name else None
                if content is not None:
                    _check_size(member.size, f"{archive}: {member.name}")
                    batches[name] = _PARSERS[ending](content.read(), f"{archive}: {member.name}")
    except DataError:
        raise
    except Exception as error:  # what a damaged archive raises has no common class
        raise DataError(f"{archive} is a damaged archive ({error}); get it again.") from error
    missing = [name for names in BATCHES.values() for name in names if name not in batches]
    if missing:
        raise DataError(f"{archive} has no {missing[0]}; give the official archive of CIFAR-10.")
    return batches


def _check_size(num_bytes: int, where: str) -> None:
    if num_bytes > BATCH_BYTES:
        raise DataError(
            f"{where} has {num_bytes:,} bytes and is not a batch of CIFAR-10; get the official archive again."
        )


def _parse_python(data: bytes, where: str) -> Batch:
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        images, labels = fields["data"], np.array(fields["labels"])
    except Exception as error:  # what a damaged pickle raises has no common class
        raise DataError(f"{where} is not a batch of CIFAR-10's python version ({error}); get it again.") from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,):
        raise DataError(f"{where} holds no rows of {_PIXELS} bytes; give the official batches of CIFAR-10.")
    return _checked(images, labels, where)


def _parse_binary(data: bytes, where: str) -> Batch:
    if not data or len(data) % (1 + _PIXELS):
        raise DataError(
            f"{where} holds {len(data)} bytes, not a multiple of {1 + _PIXELS}; get the official file again."
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return _checked(rows[:, 1:], rows[:, 0], where)


_PARSERS: dict[str, Callable[[bytes, str], Batch]] = {"": _parse_python, ".bin": _parse_binary}


def _checked(rows: np.ndarray, labels: np.ndarray, where: str) -> Batch:
    if labels.shape != (len(rows),) or labels.dtype.kind not in "iu" or not set(labels.tolist()) <= set(range(10)):
        raise DataError(f"{where} holds {len(rows)} images without as many labels from 0 to 9; get it again.")
    return rows.reshape(-1, *SHAPE), labels


class _Unpickler(pickle.Unpickler):
    """Accepts arrays of bytes besides pickle's own plain types."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global that arrays of bytes need; any other global ends the reading."""
        allowed = _GLOBALS.get((module, name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed


def _empty_array(*_: object) -> np.ndarray:
    """Replaces numpy's _reconstruct: the array that __setstate__ fills."""
    return np.ndarray((0,), np.uint8)


def _byte_dtype(code: str | bytes, *_: object) -> np.dtype:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it holds an array of {code!r}")
    return np.dtype("u1", copy=True)


def _latin1(text: str, *_: object) -> bytes:
    """Replaces _codecs.encode, by which Python 3 writes bytes in pickles for Python 2."""
    return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): np.ndarray,  # an argument of _reconstruct
    ("numpy", "dtype"): _byte_dtype,
    ("_codecs", "encode"): _latin1,
}
