"""The idx files of the MNIST family. Shapes: N samples, H height, W width."""

import math
import struct

import numpy as np

from ebmscale.data.compressed import Gunzip, check_memory
from ebmscale.data.formats.source import Arrays, Source, set_name, source_of_arrays
from ebmscale.errors import DataError
from ebmscale.storage import Storage
from ebmscale.stored import check_regular

EXCESS_BYTES = 1 << 16  # read beyond the size in the header, so that the message can give the real size


def idx(src: str) -> Source:
    """A data set of the MNIST family: a folder (any storage) with the official four idx files, gzipped or not.

    Part train is train-*, part test is t10k-*. The set has the folder's name.

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
    name, content = _open(storage, name)
    header_bytes, where = 4 + 4 * num_dims, storage.url_of(name)
    header = content.read(header_bytes)
    if header[:4] != bytes([0, 0, 8, num_dims]) or len(header) < header_bytes:
        content.read(EXCESS_BYTES)  # if it is a damaged gzip file, this raises a better error
        raise DataError(
            f"{where} is not an idx file of {num_dims}-dimensional unsigned bytes "
            f"(it begins with {header[:4].hex()}); get the official file again."
        )
    shape = struct.unpack(f">{num_dims}I", header[4:])
    if 0 in shape:
        raise DataError(f"{where} says that its data are of shape {shape}, so it holds nothing; get the file again.")
    size = math.prod(shape)
    data = content.read(min(size, content.most) + EXCESS_BYTES)
    if len(data) != size:
        held = f"{len(data)} bytes" if len(data) < size + EXCESS_BYTES else f"more than {size} bytes"
        raise DataError(f"{where} holds {held} of data, but its header says {size}; get the official file again.")
    return np.frombuffer(data, np.uint8).reshape(shape)


class _Plain:
    """A file that is not compressed, read from its beginning."""

    def __init__(self, storage: Storage, name: str):
        self._storage, self._name, self._position = storage, name, 0
        self.most = storage.size(name)

    def read(self, length: int) -> bytes:
        """The next bytes, fewer at the end."""
        length = min(length, self.most - self._position)
        found = self._storage.read_range(self._name, self._position, length) if length > 0 else b""
        self._position += len(found)
        return found


def _open(storage: Storage, name: str) -> tuple[str, "_Plain | Gunzip"]:
    """The name found (with or without .gz) and the content, uncompressed."""
    zipped = f"{name}.gz"
    for found in (name, zipped):
        if not storage.exists(found):
            continue
        where = storage.url_of(found)
        check_regular(storage, found, DataError)
        if found == name:
            plain = _Plain(storage, name)
            check_memory(plain.most, where)
            return name, plain
        check_memory(storage.size(zipped), where)
        return zipped, Gunzip(storage.read_bytes(zipped), where)
    raise DataError(
        f"{storage.url} has neither {name} nor {zipped}; "
        "give the folder that holds the four official idx files of the MNIST family."
    )
