"""Arrays that are there already: scikit-learn's digits, and NumPy's own files.

Shapes: N samples, D dimensions of a vector, C channels, H height, W width.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ebmscale.data.formats.source import Arrays, Source, local_source, set_name, source_of_arrays
from ebmscale.errors import DataError

DTYPES = ("uint8", "float16", "float32", "float64")
_IMAGES = {"train": ("x_train", "images", "x", "latents", "data"), "test": ("x_test",)}
_LABELS = {"train": ("y_train", "labels", "y"), "test": ("y_test",)}


def digits(src: str) -> Source:
    """scikit-learn's embedded handwritten digits, 1797 of (1, 8, 8), all in part train; `src` plays no role.

    Intensities 0..16 become round(v * 255 / 16).
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  a slow import that only this format needs

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return source_of_arrays("digits", "digits", [Arrays("train", "train", images, bunch.target)])


def npy(src: str) -> Source:
    """Images, latents or other arrays in NumPy's files; their type is kept, nothing is unpickled.

    `src` is a .npy file of N samples, mapped into memory; or an .npz file; or a folder of .npy files, taken in the
    order of their names, with labels in labels.npy or y.npy if there are any. In an .npz the samples are called
    x_train, images, x, latents or data (or are its only array of two dimensions or more), the labels y_train, labels
    or y; a test part is called x_test and y_test.

    A sample of shape (H, W) becomes (1, H, W), and (D,) becomes (D, 1, 1); one of more dimensions is kept, but bytes
    of shape (H, W, C) become (C, H, W) where C is 1 or 3 and H is neither.

    Raises:
        DataError: no arrays of numbers, other types than in `DTYPES`, or shapes that do not fit each other.
    """
    path = local_source(src)
    stretches = _of_folder(path) if path.is_dir() else _of_file(path)
    kinds = {(stretch.images.shape[1:], stretch.images.dtype.name) for stretch in stretches}
    if len(kinds) > 1:
        found = " and ".join(f"{dtype} {shape}" for shape, dtype in sorted(kinds))
        raise DataError(f"The arrays in {path} hold samples of {found}; pack one shape and type at a time.")
    return source_of_arrays(set_name(path, "arrays"), "npy", stretches)


def _of_file(path: Path) -> list[Arrays]:
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        return [_stretch(path, "train", "train", loaded, None)]
    try:
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error
    many = [name for name, array in arrays.items() if array.ndim >= 2]
    stretches = []
    for part, names in _IMAGES.items():
        images = _first(arrays, (*names, *many) if part == "train" and len(many) == 1 else names)
        if images is not None:
            stretches.append(_stretch(path, part, part, images, _first(arrays, _LABELS[part])))
    if not stretches:
        raise DataError(f"{path} holds {', '.join(arrays) or 'nothing'}; call the samples images or x_train.")
    return stretches


def _first(arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _of_folder(folder: Path) -> list[Arrays]:
    files = sorted(folder.glob("*.npy"))
    label_files = [file for file in files if file.stem in ("labels", "y")]
    arrays = [(file, _load_array(file)) for file in files if file not in label_files]
    if not arrays:
        raise DataError(f"{folder} has no .npy files of samples; give a folder that has, or one .npy or .npz file.")
    labels = _load_array(label_files[0]) if label_files else None
    total = sum(len(array) for _, array in arrays)
    if labels is not None and labels.shape != (total,):
        raise DataError(f"{label_files[0]} is of shape {labels.shape}; the arrays beside it hold {total} samples.")
    stretches, first = [], 0
    for number, (file, array) in enumerate(arrays):
        own = None if labels is None else labels[first : first + len(array)]
        stretches.append(_stretch(file, "train", f"train-{number:04d}", array, own))
        first += len(array)
    return stretches


def _load(path: Path) -> np.ndarray | np.lib.npyio.NpzFile:
    """A .npy file mapped into memory, or an opened .npz file."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    if isinstance(loaded, np.ndarray) and not loaded.ndim:
        raise DataError(f"{path} holds a single number; give an array of N samples.")
    return loaded


def _load_array(path: Path) -> np.ndarray:
    loaded = _load(path)
    if not isinstance(loaded, np.ndarray):
        raise DataError(f"{path} is an archive, not one array; call it .npz and pack it by itself.")
    return loaded


def _unreadable(path: Path, error: Exception) -> DataError:
    foreign = any(word in str(error) for word in ("Object arrays", "Python objects", "pickle"))
    reason = "it holds Python objects or is no NumPy file" if foreign else error
    return DataError(f"{path} cannot be read ({reason}); save arrays of numbers with numpy.save or numpy.savez.")


def _stretch(path: Path, part: str, prefix: str, images: np.ndarray, labels: np.ndarray | None) -> Arrays:
    """Samples and labels, checked against each other; the samples get three dimensions or more."""
    if images.dtype.name not in DTYPES:
        raise DataError(f"The samples in {path} are {images.dtype.name}; convert them to one of {', '.join(DTYPES)}.")
    if images.ndim < 2 or not images.size:
        raise DataError(f"{path} is of shape {images.shape}; give N samples of one dimension or more.")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise DataError(
            f"The labels in {path} are {labels.dtype.name} of shape {labels.shape}; "
            f"give one whole number from 0 on for each of the {len(images)} samples."
        )
    if images.ndim == 4:
        channels_last = images.dtype == np.uint8 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3)
        images = images.transpose(0, 3, 1, 2) if channels_last else images
    elif images.ndim < 4:
        images = images[:, None] if images.ndim == 3 else images[:, :, None, None]
    return Arrays(part, prefix, images, labels)
