"""The features of a Frechet distance: those of the standard Inception network, or of a classifier for the data set.

The distance is called FID only with the weights of Inception. With a classifier it is called `FD-NAME`, and is
comparable only within one table. Shapes: B batch, F features, C channels, H height, W width.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmscale.address import Address
from ebmscale.errors import DataError, StorageError
from ebmscale.evaluate import classifier
from ebmscale.model.pieces import parse_tensors
from ebmscale.model.pixels import to_pixels
from ebmscale.networks import ImageShape
from ebmscale.networks.inception import NUM_FEATURES, FidInception
from ebmscale.storage import Storage
from ebmscale.stored import read_file

ROWS_AT_ONCE = 50
WEIGHTS_BYTES = 4 << 30


@dataclass(frozen=True)
class Features:
    """A map from images to features.

    Attributes:
        name: of the distance, "FID" or "FD-...".
        num_features: F.
        sha256: of the file of weights.
        image_shape: (C, H, W) of the images; None means any image of 1 or 3 channels.
        extract: maps uint8 images (B, C, H, W) to features (B, F), both on `device`.
        device: on which the features are computed.
    """

    name: str
    num_features: int
    sha256: str
    image_shape: ImageShape | None
    extract: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"

    def check(self, image_shape: ImageShape) -> None:
        """Checks that the network accepts images of this shape.

        Raises:
            DataError: it does not.
        """
        if self.image_shape is not None and self.image_shape != image_shape:
            raise DataError(
                f"{self.name} takes images of shape {self.image_shape} and the run's are {image_shape}; train features "
                "on the run's own data set with tools/feature_net.py."
            )
        if self.image_shape is None and image_shape[0] not in (1, 3):
            raise DataError(f"{self.name} takes images of 1 or 3 channels and the run's are of shape {image_shape}.")

    def protocol(self) -> dict[str, str]:
        """The entries of a record about these features."""
        return {"features": self.name, "features_sha256": self.sha256}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, F) of uint8 images (B, C, H, W), both on the CPU, computed `ROWS_AT_ONCE` images at a time."""
        return torch.cat([self.extract(part.to(self.device)).cpu() for part in images.split(ROWS_AT_ONCE)])


def open_features(url: str, device: torch.device | str = "cpu") -> Features:
    """The features at an address: a folder that tools/feature_net.py wrote, or a file with the weights of Inception.

    Raises:
        StorageError: the address holds neither.
    """
    storage = Storage.at(url)
    if storage.exists(classifier.ABOUT_FILE):
        network, about = classifier.load_classifier(storage)
        network.to(device)

        def extract(images: Tensor) -> Tensor:
            return network.features(to_pixels(images))

        num_features = network.output.in_features
        return Features(f"FD-{about.name}", num_features, about.sha256, about.image_shape, extract, device)
    return _open_inception(*Storage.of_file(url), device)


def _open_inception(folder: Storage, file: str, device: torch.device | str) -> Features:
    url, data = folder.url_of(file), read_file(folder, file, WEIGHTS_BYTES)
    with torch.device("meta"):
        inception = FidInception()
    counters: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for key, value in inception.state_dict().items():
        counted = key.endswith("num_batches_tracked")  # used only in training, and not in the file
        (counters if counted else expected)[key] = torch.zeros(()).long() if counted else value
    found = {key: value for key, value in _weights(url, data).items() if key in expected}
    wrong = [key for key, value in expected.items() if key not in found or found[key].shape != value.shape]
    if wrong:
        raise StorageError(
            f"{url} does not hold the weights of the standard FID network (pt_inception-2015-12-05): "
            f"{len(wrong)} of {len(expected)} tensors are missing or of another shape, the first is {wrong[0]}."
        )
    inception.load_state_dict({key: value.float() for key, value in found.items()} | counters, assign=True)
    inception.eval().requires_grad_(False).to(device)
    return Features("FID", NUM_FEATURES, hashlib.sha256(data).hexdigest(), None, inception, device)


def _weights(url: Address, data: bytes) -> dict[str, Any]:
    """The tensors of a torch file (only tensors are unpickled) or of a safetensors file."""
    if url.suffix == ".safetensors":
        return parse_tensors(url, data)
    try:
        weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes may raise anything
        reason = " ".join(str(error).split())[:100]
        raise StorageError(f"{url} is not a file of weights ({reason}); give the .pth file as published.") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise StorageError(f"{url} does not hold a table of tensors; give the .pth file as published.")
    return weights
