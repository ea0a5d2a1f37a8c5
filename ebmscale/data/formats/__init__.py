"""Official files to records: each format is a function from a source's address to a `Source`.

A new format is one function and one line in `FORMATS`. A function checks its files before it returns, as far as it
can without decoding every image, so that nothing is written when a file is missing or damaged.
"""

import math
from collections.abc import Callable

from ebmscale.data.formats.arrays import digits, npy
from ebmscale.data.formats.celeba import celeba
from ebmscale.data.formats.cifar10 import cifar10
from ebmscale.data.formats.idx import idx
from ebmscale.data.formats.images import folder
from ebmscale.data.formats.source import Record, Source
from ebmscale.data.formats.svhn import svhn
from ebmscale.data.names import printable
from ebmscale.data.pixels import MOST_PIXELS
from ebmscale.errors import ConfigError, DataError

__all__ = ["FORMATS", "Record", "Source", "open_source"]

FORMATS: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "idx": idx,
    "cifar10": cifar10,
    "svhn": svhn,
    "celeba": celeba,
    "folder": folder,
    "npy": npy,
}
_OPTIONS = {"folder": ("size", "grey"), "celeba": ("size", "grey", "attribute")}


def open_source(
    format: str, src: str, *, size: int | None = None, grey: bool = False, attribute: str | None = None
) -> Source:
    """The source of a format by name.

    Args:
        format: a key of `FORMATS`.
        src: where its files are.
        size: height and width that images get (folder, celeba); None for the format's own.
        grey: one channel instead of three (folder, celeba).
        attribute: the attribute that becomes the label (celeba).

    Raises:
        ConfigError: there is no such format, it does not take these options, or images would be too large.
        DataError: files are missing, damaged or of another form.
    """
    if format not in FORMATS:
        raise ConfigError(f"There is no data format {format!r}; choose one of {', '.join(FORMATS)}.")
    options = {"size": size, "grey": grey, "attribute": attribute}
    given = {name: value for name, value in options.items() if value}
    for name in given:
        if name not in _OPTIONS.get(format, ()):
            takers = [taker for taker, names in _OPTIONS.items() if name in names]
            raise ConfigError(f"{format} takes no {name}; it is for {' and '.join(takers)}.")
    if size is not None and size**2 > MOST_PIXELS:
        raise ConfigError(f"size {size} is too large for images; the greatest is {math.isqrt(MOST_PIXELS)}.")
    try:
        return FORMATS[format](src, **given)
    except OSError as error:
        where = printable(error.filename or src)
        raise DataError(f"{where} cannot be read ({error.strerror or error}); give files that can be.") from None
