"""Arrays that are there already: scikit-learn's digits, and NumPy's own files.

Shapes: N samples, D dimensions of a vector, C channels, H height, W width.
"""

import dataclasses
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ebmscale.data.arrays import check_ends
from ebmscale.data.compressed import check_zip
from ebmscale.data.formats.source import Arrays, Pairs, Source, check_file, local_source, set_name, source_of_arrays
from ebmscale.data.parts import PARTS, part_of, parts_of, words_of
from ebmscale.errors import DataError

DTYPES = ("uint8", "float16", "float32", "float64")
_SAMPLES = ("x", "images", "image", "latents", "data")  # words of samples' names, the most likely first
_LABELS = {"y", "label", "labels"}


def digits(src: str) -> Source:
    """scikit-learn's embedded handwritten digits, 1797 of (1, 8, 8), all in part train; `src` is - or empty.

    Intensities 0..16 become round(v * 255 / 16).
    """
    if Path(src).name not in ("", "-"):  # a run makes addresses absolute
        raise DataError(f"digits comes with scikit-learn and is not read from {src}; write - there, or choose npy.")
    from sklearn.datasets import load_digits  # noqa: PLC0415  a slow import that only this format needs

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return source_of_arrays("digits", "digits", [Arrays("train", "train", images, bunch.target)])


def npy(src: str) -> Source:
    """Images, latents or other arrays in NumPy's files; their type is kept, nothing is unpickled.

    `src` is a .npy file of N samples, mapped into memory; or an .npz file; or a folder of .npy files, also in folders
    of the parts (train/, val/, test/), taken in the order of their names. The words of an array's name say its part
    (see `parts.part_of`); the words y, label and labels say that it holds labels: x_train, val_images, y_test. Without
    a part's word it is of part train. In an .npz the samples are called x, images, latents or data, or are the only
    array of two dimensions or more.

    The words mean and std say that samples are latents as Gaussian posteriors: train_mean and train_std, or mean and
    std. Latents are floats and keep their shape.

    Bytes of shape (H, W) become (1, H, W), and (D,) becomes (D, 1, 1); bytes of shape (H, W, C) become (C, H, W) where
    C is 1 or 3 and H is neither.

    Raises:
        DataError: no arrays of numbers, other types than in `DTYPES`, shapes that do not fit each other, or an array
            whose part is not known.
    """
    path = local_source(src)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = (path,)
    if path.is_dir():
        stretches, files = _of_folder(path)
    else:
        stretches, notes = _of_file(path)
    kinds = {(stretch.images.shape[1:], stretch.images.dtype.name) for stretch in stretches}
    of_posteriors = {isinstance(stretch.images, Pairs) for stretch in stretches}
    if len(of_posteriors) > 1:
        raise DataError(
            f"{path} has means and standard deviations for some parts only; give them for all, or for none."
        )
    if len(kinds) > 1:
        found = " and ".join(f"{dtype} {shape}" for shape, dtype in sorted(kinds))
        raise DataError(f"The arrays in {path} hold samples of {found}; pack one shape and type at a time.")
    source = source_of_arrays(set_name(path, "arrays"), "npy", stretches, files=files)
    return dataclasses.replace(source, notes=notes, posteriors=of_posteriors == {True})


def check_numbers(values: np.ndarray, where: str) -> None:
    """Refuse an array whose numbers cannot be packed as they are.

    Raises:
        DataError: its type is none of `DTYPES`; any byte order and memory order is accepted.
    """
    if values.dtype.name in DTYPES:
        return
    advice = {
        "uint16": "; of pictures divide them by 257 to bytes",
        "bool": "; of pictures multiply them by 255 to bytes",
    }.get(values.dtype.name, "")
    raise DataError(f"{where} are {values.dtype.name}; convert them to one of {', '.join(DTYPES)}{advice}.")


def check_labels(labels: np.ndarray, num_samples: int, where: str) -> np.ndarray:
    """Labels (N,) of N samples, from (N,) or (N, 1); DataError if they are not whole numbers from 0 on."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.shape != (num_samples,) or flat.dtype.kind not in "iu" or flat.min() < 0:
        raise DataError(
            f"The labels in {where} are {labels.dtype.name} of shape {labels.shape}; "
            f"give one whole number from 0 on for each of the {num_samples} samples."
        )
    if int(flat.max()) > np.iinfo(np.int64).max:
        raise DataError(f"The labels in {where} go up to {flat.max()}, which is not the number of a class.")
    return flat.astype(np.int64)


def _holds_labels(name: str) -> bool:
    return any(word in _LABELS or (word[0] == "y" and part_of(word[1:])) for word in words_of(name))


def _of_file(path: Path) -> tuple[list[Arrays], tuple[str, ...]]:
    """The stretches of a .npy or .npz file, and the notes on arrays that are not packed."""
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        return [_stretch(path, "train", "train", loaded, None)], ()
    try:
        with loaded:
            arrays = {name: array for name in loaded.files if isinstance(array := loaded[name], np.ndarray)}
    except Exception as error:  # what a damaged archive raises has no common class
        raise _unreadable(path, error) from error
    labels = {name for name in arrays if _holds_labels(name)}
    if _are_posteriors([name for name in arrays if name not in labels]):
        return _of_posteriors(path, {name: array for name, array in arrays.items() if _moment(name) or name in labels})
    many = [name for name, array in arrays.items() if array.ndim >= 2 and name not in labels]
    named = [name for name in arrays if name not in labels and (part_of(name) or _rank(name) < len(_SAMPLES))]
    stretches, used = [], set()
    for part in PARTS:
        own = [name for name in named or (many if len(many) == 1 else []) if (part_of(name) or "train") == part]
        if own:
            chosen = min(own, key=_rank)
            label = _only((name for name in arrays if name in labels), part, path)
            used |= {chosen, label}
            values = None if label is None else arrays[label]
            stretches.append(_stretch(path, part, part, arrays[chosen], values))
    if not stretches:
        raise DataError(f"{path} holds {', '.join(arrays) or 'nothing'}; name the array of samples images or x_train.")
    left = [name for name in arrays if name not in used]
    return stretches, (f"arrays not packed: {', '.join(left)}",) if left else ()


def _only(names: Iterable[str], part: str, where: Path) -> str | None:
    """The one of these arrays that is of the part, None if none is; DataError if several are."""
    found = [name for name in names if (part_of(name) or "train") == part]
    if len(found) > 1:
        raise _both(where, found[0], found[1], part)
    return next(iter(found), None)


def _both(where: Path, one: str, other: str, part: str) -> DataError:
    return DataError(
        f"{where} has {one} and {other}, which would both be those of part {part}; leave one out, or name its part."
    )


def _moment(name: str) -> str | None:
    """`mean` or `std` if a word of the name says so."""
    return next((word for word in ("mean", "std") if word in words_of(name)), None)


def _are_posteriors(names: list[str]) -> bool:
    """Whether arrays of these names, none of them labels, are means and standard deviations.

    Beside arrays that are called samples they are statistics, such as those of pixels.
    """
    others = [name for name in names if not _moment(name)]
    return len(others) < len(names) and not any(part_of(name) or _rank(name) < len(_SAMPLES) for name in others)


def _of_posteriors(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[list[Arrays], tuple[str, ...]]:
    """The stretches of means and standard deviations, with labels where there are some.

    Raises:
        DataError: one of the two is missing or has another shape, or they are not floats.
    """
    stretches = []
    for part in PARTS:
        names = {name: "labels" if _holds_labels(name) else _moment(name) for name in arrays}
        kinds = {kind: _only((name for name in names if names[name] == kind), part, path) for kind in names.values()}
        found = {kind: arrays[name] for kind, name in kinds.items() if name is not None}
        labels = found.pop("labels", None)
        if not found:
            continue
        if set(found) != {"mean", "std"}:
            here, other = ("mean", "std") if "mean" in found else ("std", "mean")
            raise DataError(f"{path} has {here} of part {part} and no {other}; give both, or name the array latents.")
        mean, std = found["mean"], found["std"]
        if mean.shape != std.shape or mean.ndim < 2 or not mean.size:
            raise DataError(
                f"In {path} the means of part {part} have the shape {mean.shape} and the standard deviations "
                f"{std.shape}; give both for each of N latents."
            )
        for values in (mean, std):
            if values.dtype.kind != "f":
                raise DataError(f"The latents in {path} are {values.dtype.name}; convert them to float32.")
            check_numbers(values, f"The latents in {path}")
        checked = None if labels is None else check_labels(labels, len(mean), str(path))
        stretches.append(Arrays(part, part, Pairs(mean, std), checked))
    return stretches, ()


def _rank(name: str) -> int:
    """How likely the name is that of the samples; 0 is the most likely."""
    words = words_of(name) | {word[0] for word in words_of(name) if part_of(word[1:]) and word[0] == "x"}
    plain = [number for number, word in enumerate(_SAMPLES) if word in words]
    return min(plain, default=len(_SAMPLES))


def _of_folder(folder: Path) -> tuple[list[Arrays], tuple[Path, ...]]:
    """The stretches of a folder's files, part after part, and the files."""
    inner = parts_of([path.name for path in folder.iterdir() if path.is_dir() and _arrays_in(path)], str(folder)) or {}
    placed: list[tuple[Path, str | None]] = [(file, None) for file in _arrays_in(folder)]
    placed += [(file, part) for name, part in sorted(inner.items()) for file in _arrays_in(folder / name)]
    in_parts = any(part or part_of(file.stem) for file, part in placed)
    samples: dict[str, list[Path]] = {part: [] for part in PARTS}
    labels: dict[str, Path] = {}
    for file, place in placed:
        part = place or part_of(file.stem)
        if _holds_labels(file.stem):
            first = labels.setdefault(part or "train", file)
            if first != file:
                raise _both(folder, first.name, file.name, part or "train")
        elif in_parts and part is None and _rank(file.stem) == len(_SAMPLES):
            raise DataError(
                f"{file} lies beside arrays whose names say a part of the set, but its own name does not; call it "
                "train_... or x_train."
            )
        else:
            samples[part or "train"].append(file)
    if _are_posteriors([file.stem for files in samples.values() for file in files]):
        named = {f"{part}_{file.stem}": _load_array(file) for part, files in samples.items() for file in files}
        named |= {f"{part}_labels": _load_array(file) for part, file in labels.items()}
        stretches, _ = _of_posteriors(folder, named)
        return stretches, tuple(file for file, _ in placed)
    if not any(samples.values()):
        raise DataError(f"{folder} has no .npy files of samples; give a folder that has, or one .npy or .npz file.")
    if astray := [file for part, file in labels.items() if not samples[part]]:
        raise DataError(
            f"{astray[0]} holds labels of a part that has no samples; name that part in the samples' files."
        )
    stretches = [one for part, files in samples.items() for one in _of_part(part, files, labels.get(part))]
    return stretches, tuple(file for file, _ in placed)


def _arrays_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.npy") if file.is_file())


def _of_part(part: str, files: list[Path], label_file: Path | None) -> list[Arrays]:
    arrays = [(file, _load_array(file)) for file in files]
    labels = None if label_file is None else _load_array(label_file)
    total = sum(len(array) for _, array in arrays)
    if labels is not None and len(labels) != total:
        raise DataError(f"{label_file} is of shape {labels.shape}; the arrays beside it hold {total} samples.")
    stretches, first = [], 0
    for number, (file, array) in enumerate(arrays):
        own = None if labels is None else labels[first : first + len(array)]
        stretches.append(_stretch(file, part, f"{part}-{number:04d}", array, own))
        first += len(array)
    return stretches


def _load(path: Path) -> np.ndarray | np.lib.npyio.NpzFile:
    """A .npy file mapped into memory, or an opened .npz file."""
    check_file(path)
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                check_zip(file, str(path))
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.memmap):
            check_ends(loaded.offset + loaded.nbytes, path.stat().st_size, str(path))
    except DataError:
        raise
    except Exception as error:  # what a damaged file raises has no common class
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
    reason = "it holds Python objects or is not a NumPy file" if foreign else error
    return DataError(f"{path} cannot be read ({reason}); save arrays of numbers with numpy.save or numpy.savez.")


def _stretch(path: Path, part: str, prefix: str, images: np.ndarray, labels: np.ndarray | None) -> Arrays:
    """Samples and labels, checked against each other; bytes get three dimensions or more."""
    check_numbers(images, f"The samples in {path}")
    if images.ndim < 2 or not images.size:
        raise DataError(f"{path} is of shape {images.shape}; give N samples of one dimension or more.")
    if labels is not None:
        labels = check_labels(labels, len(images), str(path))
    if images.ndim == 4 and images.dtype.kind != "f":
        channels_last = images.dtype == np.uint8 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3)
        images = images.transpose(0, 3, 1, 2) if channels_last else images
    elif images.ndim < 4 and images.dtype.kind != "f":
        images = images[:, None] if images.ndim == 3 else images[:, :, None, None]
    return Arrays(part, prefix, images, labels)
