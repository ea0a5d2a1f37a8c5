"""Arrays of numbers from users: checked and converted, or refused with the reason."""

from typing import Any

import numpy as np

from ebmscale.errors import DataError


def check_real(values: np.ndarray, name: str) -> None:
    """Refuses an array whose elements are not real numbers; any byte order and any width is accepted.

    Of a file that is mapped into memory nothing but a mask is read.

    Raises:
        DataError: complex numbers, dates, text, Python objects, records, or values that are masked; `name` says which
            array it is.
    """
    if values.dtype.names is not None:
        raise DataError(f"{name} has records of {', '.join(values.dtype.names)}; give one of these as an array.")
    if np.ma.is_masked(values):
        raise DataError(f"{name} has masked values; leave these samples out, or fill the values in.")
    if values.dtype.kind in "biuf":
        return
    if values.dtype.kind == "c":
        raise DataError(f"{name} has complex numbers; give real and imaginary parts as two coordinates.")
    if values.dtype.kind in "mM":
        raise DataError(f"{name} has dates or times ({values.dtype}); convert them to numbers with astype('int64').")
    raise DataError(f"{name} is not an array of numbers, but of type {values.dtype.name}; give N samples as one array.")


def check_ends(end: int, num_bytes: int, name: str) -> None:
    """Refuses a .npy file that goes on after its array, such as one to which a second array was appended.

    Raises:
        DataError: it has more bytes than `end`.
    """
    if num_bytes > end:
        raise DataError(
            f"{name} has {num_bytes - end:,} bytes after its array; if it holds several arrays, save them as one "
            "(numpy.concatenate), or in one .npz file."
        )


def as_numbers(values: Any, name: str) -> np.ndarray:
    """An array, a list or a tensor of any device as an array of real numbers of its own type.

    Raises:
        DataError: as `check_real`, or it is not an array.
    """
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.numpy() if str(values.dtype) != "torch.bfloat16" else values.float().numpy()
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{name} is not an array of numbers; give N samples as one array.") from None
    check_real(array, name)
    return np.asarray(array)


def as_float64(values: Any, name: str) -> np.ndarray:
    """An array, a list or a tensor as float64, in the memory order of C and the byte order of this machine.

    Raises:
        DataError: as `as_numbers`; or float64 cannot hold the numbers, as they are too large or differ by too little.
    """
    numbers = as_numbers(values, name)
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(numbers, dtype=np.float64).reshape(numbers.shape)
    if numbers.dtype.itemsize >= 8 and numbers.dtype != wide.dtype:
        if numbers.dtype.kind == "f" and bool((np.isfinite(numbers) & ~np.isfinite(wide)).any()):
            raise DataError(
                f"{name} has numbers above {np.finfo(np.float64).max:.3g}; divide all of them by one number."
            )
        if numbers.size and numbers.dtype.kind in "iu":
            _check_whole(numbers, name)
    return wide


def _check_whole(numbers: np.ndarray, name: str) -> None:
    """Refuses whole numbers that float64 would round by more than a thousandth of their spread."""
    low, high = numbers.min(axis=0), numbers.max(axis=0)
    largest = np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))
    spread = (high.astype(object) - low.astype(object)) if numbers.ndim == 1 else high.astype(object) - low
    near = (np.spacing(largest) > 1) & (np.spacing(largest) > 1e-3 * np.asarray(spread, np.float64))
    if bool((near & (np.asarray(spread, np.float64) > 0)).any()):
        raise DataError(
            f"{name} has whole numbers that differ by too little for their size; subtract the smallest one from all."
        )
