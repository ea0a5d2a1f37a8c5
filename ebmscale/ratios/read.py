"""Samples from where they lie: NumPy's files, or a set of shards."""

import io
import zipfile

import numpy as np
from torch import Tensor

from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.stream import read_split
from ebmscale.errors import DataError
from ebmscale.ratios.samples import as_samples
from ebmscale.storage import Storage

NAMES = ("z", "x", "images", "latents", "data", "x_train")
"""What samples are called in an .npz file that holds more than one array."""


def read_samples(url: str, name: str) -> Tensor:
    """The samples (N, ...) at an address, as float32; bytes become values in [-1, 1].

    Args:
        url: a .npy file; an .npz file, with one array or one called as in `NAMES`; or a set of shards, of which the
            train split is taken, whole.
        name: what the set is called in errors.

    Raises:
        DataError: there are no samples.
    """
    storage = Storage.at(url)
    if storage.url.suffix in (".npy", ".npz"):
        values = _read_numpy(url)
    else:
        if not storage.exists(FILE):
            raise DataError(f"{url} is no .npy or .npz file and no set of shards; give one of these.")
        values = read_split(storage, Manifest.load(storage), "train")[0].numpy()
        if values.ndim == 4 and values.shape[2:] == (1, 1):  # vectors are packed as (Z, 1, 1)
            values = values[:, :, 0, 0]
    if values.dtype == np.uint8:
        values = values.astype(np.float32) / 127.5 - 1
    return as_samples(values, name)


def _read_numpy(url: str) -> np.ndarray:
    storage, file = Storage.of_file(url)
    content = io.BytesIO(storage.read_bytes(file))
    try:
        loaded = np.load(content, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        names = [key for key in NAMES if key in loaded] or list(loaded)
        if len(loaded) > 1 and names[0] not in NAMES:
            raise DataError(f"{url} holds {', '.join(loaded)}; call the samples {' or '.join(NAMES)}.")
        return loaded[names[0]]
    except (ValueError, EOFError, OSError, IndexError, zipfile.BadZipFile):
        raise DataError(f"{url} cannot be read; save an array of numbers with numpy.save or numpy.savez.") from None
