"""The images on which a model is measured. They are checked against the model and divided among the workers.

Shapes: B images of a chunk, C H W image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ebmscale.config import HeldOutBlock
from ebmscale.data.choose import select_all, take
from ebmscale.data.chunks import CHUNK_SAMPLES, Chunk, iter_chunks
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import Split, class_index, select
from ebmscale.errors import DataError
from ebmscale.model.latent_model import LatentModel
from ebmscale.seeds import derive
from ebmscale.storage import Storage
from ebmscale.world import World

Progress = Callable[[int, int, str], None]
"""Called with what is done, what is to be done in all, and the unit, such as images."""


@dataclass(frozen=True)
class ImageSet:
    """Images of a packed set.

    Attributes:
        storage: of the shards.
        manifest: of the shards.
        selection: the chosen samples.
        split: "test", "validation", "train", or "all".
        held_out: the class on which the model was not trained.
        anomalous: the label of that class; None if there is no such class.
        world: the ranks that divide the chunks among them.
        progress: called after every chunk.
        numbers: of the chunks that count; None: of all.
    """

    storage: Storage
    manifest: Manifest
    selection: Split
    split: str
    held_out: HeldOutBlock
    anomalous: int | None
    world: World
    progress: Progress = lambda done, total, unit: None
    numbers: range | None = None

    @property
    def num_chunks(self) -> int:
        """How many chunks all images make."""
        return -(-len(self) // CHUNK_SAMPLES)

    def __len__(self) -> int:
        return len(self.selection)

    def chunks(self) -> Iterator[Chunk]:
        """This rank's chunks. The other ranks are taken to be as far as this one."""
        done, total, world = 0, len(self), self.world
        self.progress(0, total, "images")
        for chunk in iter_chunks(
            self.storage, self.manifest, self.selection, world.rank, world.size, numbers=self.numbers
        ):
            yield chunk
            done += world.size * len(chunk.images)
            self.progress(min(done, total), total, "images")

    def protocol(self) -> dict[str, Any]:
        """What the protocol of a measurement records about these images."""
        held_out = {} if self.anomalous is None else {"held_out": self.held_out.model_dump()}
        return {"data": self.manifest.name, "split": self.split, "num_images": len(self)} | held_out


def measured_split(model: LatentModel, storage: Storage) -> str:
    """The split on which a model is measured by default: test, or validation if the set has no test part.

    Raises:
        DataError: there is no set.
    """
    held_out = model.config.data.held_out
    return default_split(Manifest.load(storage), held_out)


def default_split(manifest: Manifest, held_out: HeldOutBlock) -> str:
    """Test, or validation if the set has no test part and the protocol of the held-out class does not make one."""
    makes_one = held_out.label is not None and held_out.protocol == "pooled"
    return "test" if manifest.counts().get("test") or makes_one else "validation"


def open_images(
    model: LatentModel,
    storage: Storage,
    split: str,
    world: World,
    limit: int | None = None,
    with_anomalies: bool = False,
    progress: Progress = lambda done, total, unit: None,
) -> ImageSet:
    """A split of a set, as the configuration of the model defines it.

    Args:
        model: its configuration defines the validation part and the class that was held out.
        storage: of the packed set.
        split: "test", "validation" or "train".
        world: ranks that divide the images among them.
        limit: the largest number of images. The images with the lowest hashes of their keys are chosen.
        with_anomalies: whether to include the class that was held out.
        progress: called after every chunk of images.

    Raises:
        DataError: there is no set, it is empty, or its images do not have the dtype and shape of the model.
        ConfigError: there is no such split or class.
    """
    manifest = fitting_manifest(model, storage)
    block = model.config.data
    anomalous = class_index(manifest, block.held_out)
    chosen = select(manifest, split, block.validation_fraction, block.held_out, with_anomalies)
    chosen = take(chosen, limit, None if with_anomalies else anomalous)
    if not len(chosen):
        raise DataError(f"The {split} split of {storage.url} has no images of the classes that the run was trained on.")
    return ImageSet(storage, manifest, chosen, split, block.held_out, anomalous, world, progress)


def open_all_images(
    model: LatentModel, storage: Storage, world: World, progress: Progress = lambda done, total, unit: None
) -> ImageSet:
    """All images of a set, of every part and label. Raises as `open_images`."""
    manifest = fitting_manifest(model, storage)
    return ImageSet(storage, manifest, select_all(manifest), "all", HeldOutBlock(), None, world, progress)


def fitting_manifest(model: LatentModel, storage: Storage) -> Manifest:
    """The manifest of a set; DataError if its samples are not those that the model takes."""
    manifest = Manifest.load(storage)
    what, shape = manifest.kind_of_samples
    fits = what != "images" if model.is_given else what == "images" or (what == "arrays" and not _takes_images(model))
    if fits and shape == model.sample_shape:
        return manifest
    wanted = f"{'latents' if model.is_given else 'samples'} of shape {model.sample_shape}"
    if _takes_images(model):
        wanted = f"uint8 images of shape {model.image_shape}"
    raise DataError(
        f"{storage.url} holds {manifest.dtype} {what} of shape {shape}, and the model takes {wanted}; pack such."
    )


def _takes_images(model: LatentModel) -> bool:
    """Whether the networks are this package's, which take bytes."""
    return not model.is_given and model.config.model.generator.class_path is None


def chunk_seed(seed: int, chunk: int) -> int:
    """The seed of the noise of a chunk. It does not depend on the rank."""
    return derive(seed, "evaluate", chunk)
