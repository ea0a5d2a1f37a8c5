"""The classifier for the features of `FD-...`. It is trained on the labels of a set, and saved as safetensors and JSON.

Shapes: B batch, F features, C channels, H height, W width.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from ebmscale.data.choose import take
from ebmscale.data.chunks import iter_chunks
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import VALIDATION_FRACTION, select
from ebmscale.data.stream import Batching, ImageStream
from ebmscale.errors import DamagedError, DataError, DivergenceError, StorageError
from ebmscale.model.pieces import check_fit, parse_tensors, shapes_of
from ebmscale.model.pixels import to_pixels
from ebmscale.networks import ImageShape
from ebmscale.networks.feature_net import FeatureNet, build_feature_net
from ebmscale.seeds import torch_generator
from ebmscale.storage import Storage
from ebmscale.stored import FileName, Size, as_form, read_document, read_file
from ebmscale.training.run_data import shape_of_images

KIND, VERSION = "ebmscale-feature-net", 1
WEIGHTS_FILE, ABOUT_FILE = "feature_net.safetensors", "feature_net.json"
WEIGHTS_BYTES = 4 << 30
NUM_STREAMS, WINDOW = 64, 512
LEAST_UPDATES = 5  # a fifth of fewer is less than one update, by which torch divides


@dataclass(frozen=True)
class Recipe:
    """Settings of training: AdamW with a learning rate that rises for a fifth of the time and then falls to 0."""

    width: int = 16
    epochs: float = 3.0
    batch_size: int = 128
    rate: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class About:
    """The description of a classifier, saved beside its weights.

    Attributes:
        name: the metric is called `FD-` followed by this name.
        image_shape: (C, H, W).
        classes: names of the labels.
        width: channels of the first layer.
        sha256: of the file of weights.
        accuracy: fraction of the held-out images that were classified correctly.
        held_out: split and number of the held-out images: "test, 10,000 images".
        recipe: settings of training.
    """

    name: FileName
    image_shape: tuple[Size, Size, Size]
    classes: list[str]
    width: Size
    sha256: str
    accuracy: float
    held_out: str
    recipe: Recipe


def train_classifier(
    data: Storage, manifest: Manifest, recipe: Recipe, report: Callable[[int, int, float], None] = lambda *_: None
) -> FeatureNet:
    """Trains a classifier on the train split of a set.

    Args:
        data: storage of the shards.
        manifest: of the shards.
        recipe: settings.
        report: called after every update with its number, the number of updates, and the loss.

    Raises:
        DataError: the set has no labels, or no images.
        DivergenceError: a weight is not a finite number any more.
    """
    shape = check_labelled_images(data, manifest)
    source = torch_generator(recipe.seed, "feature-net-weights")
    network = build_feature_net(shape, len(manifest.classes), recipe.width, generator=source)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    batching = Batching(recipe.batch_size, recipe.seed, min(NUM_STREAMS, recipe.batch_size), WINDOW)
    stream = ImageStream(data, manifest, select(manifest, "train"), batching)
    num_updates = max(math.ceil(recipe.epochs * stream.num_samples / recipe.batch_size), 1)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=max(num_updates, LEAST_UPDATES) + 1, pct_start=0.2
    )
    network.train()
    with closing(stream):
        for number, batch in enumerate(itertools.islice(stream, num_updates), 1):
            loss = nn.functional.cross_entropy(network(to_pixels(batch.images)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            report(number, num_updates, loss.item())
    if not all(bool(weights.isfinite().all()) for weights in network.state_dict().values()):
        raise DivergenceError("The training of the classifier diverged; give it a lower learning rate.")
    return network.eval().requires_grad_(False)


def held_out_split(manifest: Manifest) -> str:
    """The split on which a classifier is measured: test, or validation where the set has no test part."""
    return "test" if manifest.counts().get("test") else "validation"


@torch.no_grad()
def measure_accuracy(network: FeatureNet, data: Storage, manifest: Manifest, split: str) -> tuple[float, int]:
    """The fraction of a split that the network classifies correctly, and the number of its images."""
    selection = take(select(manifest, split, VALIDATION_FRACTION), None)
    right = 0
    for chunk in iter_chunks(data, manifest, selection):
        right += int((network(to_pixels(chunk.images)).argmax(1) == chunk.labels).sum())
    return right / len(selection), len(selection)


def save_classifier(
    storage: Storage, network: FeatureNet, manifest: Manifest, recipe: Recipe, accuracy: float, held_out: str, name: str
) -> About:
    """Writes weights and description. Returns the description."""
    weights = save_tensors({key: value.contiguous() for key, value in network.state_dict().items()})
    channels, height, width = manifest.image_shape
    digest = hashlib.sha256(weights).hexdigest()
    shape = (channels, height, width)
    about = About(name, shape, manifest.classes, recipe.width, digest, accuracy, held_out, recipe)
    storage.publish(WEIGHTS_FILE, weights)
    storage.publish(ABOUT_FILE, json.dumps({"kind": KIND, "version": VERSION} | asdict(about), indent=1).encode())
    return about


def load_classifier(storage: Storage) -> tuple[FeatureNet, About]:
    """The classifier that `save_classifier` wrote. Its sha256 is checked.

    Raises:
        StorageError: the files are damaged, or of another version.
    """
    where = storage.url_of(ABOUT_FILE)
    try:
        fields = read_document(storage, ABOUT_FILE, dict[str, Any], non_finite=True)
        if (fields.pop("kind", None), fields.pop("version", None)) != (KIND, VERSION):
            raise DamagedError("another kind or version")
        about = as_form(fields, About, where)
    except DamagedError as error:
        raise StorageError(
            f"{where} does not describe a classifier of this version ({str(error).rstrip('.')}); train one with "
            "`ebmscale features train DATA OUT`."
        ) from None
    weights = read_file(storage, WEIGHTS_FILE, WEIGHTS_BYTES)
    if hashlib.sha256(weights).hexdigest() != about.sha256:
        raise StorageError(
            f"{storage.url_of(WEIGHTS_FILE)} is damaged: its sha256 differs from that in {where}; train a classifier "
            "again with `ebmscale features train DATA OUT`."
        )
    tensors = parse_tensors(storage.url_of(WEIGHTS_FILE), weights)
    try:
        with torch.device("meta"):
            network = FeatureNet(about.image_shape, len(about.classes), about.width)
    except RuntimeError as error:  # torch counts with 64 bits
        raise DamagedError(f"{where} does not describe a classifier: {error}") from None
    check_fit(shapes_of(tensors), shapes_of(network.state_dict()), storage.url_of(WEIGHTS_FILE))
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise DamagedError(f"{storage.url_of(WEIGHTS_FILE)} holds weights that are not finite numbers; train it again.")
    source = torch_generator(0, "feature-net-weights")
    network = build_feature_net(about.image_shape, len(about.classes), about.width, generator=source)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), about


def check_labelled_images(data: Storage, manifest: Manifest) -> ImageShape:
    """(C, H, W) of the images of a labelled set.

    Raises:
        DataError: the set does not hold uint8 images, or a sample has no label.
    """
    shape = shape_of_images(data, manifest)
    if not manifest.classes or manifest.num_unlabelled():
        raise DataError(f"{data.url} has samples without a label; a classifier needs a label for each.")
    return shape
