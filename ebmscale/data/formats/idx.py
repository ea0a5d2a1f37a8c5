"""The idx files of the MNIST family. Shapes: N samples, H height, W width."""

import gzip
import math
import struct
import zlib

import numpy as np

from ebmscale.data.formats.source import Arrays, Source, set_name, source_of_arrays
from ebmscale.errors import DataError
from ebmscale.storage import Storage


def idx(src: str) -> Source:
    """A data set of the MNIST family: a folder (any storage) with the official four idx files, gzipped or not.

    Part train is train-*, part test is t10k-*; the set is called as the folder is.

    Raises:
        DataError: a file is missing, damaged, or does not fit the others.
    """
    storage = Storage.at(src)
    stretches = [_idx_part(storage, part, prefix) for part, prefix in (("train", "train"), ("test", "t10k"))]
    shapes = {stretch.images.shape[1:] for stretch in stretches}
    if len(shapes) > 1:
        raise DataError(f"The train and t10k images in {src} differ in shape; get all four files of one data set.")
    return source_of_arrays(set_name(storage.url, "idx"), "idx", stretches)


def _idx_part(storage: Storage, part: str, prefix: str) -> Arrays:
    images = _read_idx(storage, f"{prefix}-images-idx3-ubyte", num_dims=3)
    labels = _read_idx(storage, f"{prefix}-labels-idx1-ubyte", num_dims=1)
    if len(images) != len(labels) or not len(labels):
        raise DataError(
            f"The {prefix} files in {storage.url} hold {len(images)} images and {len(labels)} labels; "
            "get the files again."
        )
    return Arrays(part, part, images[:, None], labels)


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
