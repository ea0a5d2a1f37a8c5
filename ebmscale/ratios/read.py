"""Samples from where they lie: NumPy's files, or a set of shards."""

import io
import zipfile

import numpy as np
from torch import Tensor

from ebmscale.data.arrays import check_ends, check_real
from ebmscale.data.chunks import read_split
from ebmscale.data.compressed import check_memory, check_zip
from ebmscale.data.decode import POSTERIORS
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.errors import DataError
from ebmscale.ratios.samples import as_pixels, as_samples
from ebmscale.seeds import derive
from ebmscale.storage import Storage
from ebmscale.stored import check_regular

NAMES = ("z", "x", "images", "latents", "data", "x_train")
"""What samples are called in an .npz file that holds more than one array."""


def read_samples(url: str, name: str) -> Tensor:
    """The samples (N, ...) at an address, as float64; bytes become values in [-1, 1].

    Args:
        url: as of `read_array`.
        name: what the set is called in errors.

    Raises:
        DataError: there are no samples.
    """
    values = read_array(url)
    samples = as_samples(values, name)
    return as_pixels(samples) if values.dtype == np.uint8 else samples


def read_array(url: str) -> np.ndarray:
    """The samples (N, ...) at an address, of the type that they have there.

    Args:
        url: a .npy file; an .npz file, with one array or one called as in `NAMES`; or a set of shards, of which the
            train split is taken, whole. Of Gaussian posteriors one latent each is drawn, always the same.

    Raises:
        DataError: there are no real numbers.
    """
    storage = Storage.at(url)
    if storage.url.suffix in (".npy", ".npz"):
        values = _read_numpy(url)
    else:
        if not storage.exists(FILE):
            raise DataError(f"{url} is neither an .npy or .npz file nor a set of shards; give one of these.")
        manifest = Manifest.load(storage)
        values = read_split(storage, manifest, "train")[0].numpy()
        if manifest.encoding == POSTERIORS:
            values = _draws(values, manifest.shards[0].sha256)
        if values.ndim == 4 and values.shape[2:] == (1, 1):  # vectors are packed as (Z, 1, 1)
            values = values[:, :, 0, 0]
    check_real(values, url)
    return values


def _draws(posteriors: np.ndarray, name: str) -> np.ndarray:
    """Latents (N, ...), one of each mean and standard deviation (N, 2, ...); sets of other names have other noise."""
    mean, std = posteriors[:, 0], posteriors[:, 1]
    return mean + std * np.random.default_rng(derive(0, name)).standard_normal(mean.shape)


def _read_numpy(url: str) -> np.ndarray:
    storage, file = Storage.of_file(url)
    check_regular(storage, file, DataError)
    if storage.exists(file):
        check_memory(storage.size(file), url)
    content = io.BytesIO(storage.read_bytes(file))
    try:
        if zipfile.is_zipfile(content):
            check_zip(content, url)
        content.seek(0)
        loaded = np.load(content, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            check_ends(content.tell(), content.getbuffer().nbytes, url)
            return loaded
        names = [key for key in NAMES if key in loaded] or list(loaded)
        if len(loaded) > 1 and names[0] not in NAMES:
            raise DataError(f"{url} holds {', '.join(loaded)}; name the array of samples {' or '.join(NAMES)}.")
        return np.asarray(loaded[names[0]])
    except DataError:
        raise
    except Exception as error:  # what a damaged file raises has no common class
        objects = any(word in str(error) for word in ("Object arrays", "Python objects"))
        reason = ", because it holds Python objects" if objects else ""
        raise DataError(
            f"{url} cannot be read{reason}; save an array of numbers with numpy.save or numpy.savez."
        ) from None
