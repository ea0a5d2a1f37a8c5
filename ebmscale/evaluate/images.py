"""The images on which a model is measured: those of a split, checked against the model and shared out among workers.

Shapes: B images of a chunk, C H W image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ebmscale.config import HeldOutBlock
from ebmscale.data.chunks import Chunk, iter_chunks, select_all, take
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import Selection, class_index, select
from ebmscale.errors import DataError
from ebmscale.model.latent_model import LatentModel
from ebmscale.seeds import derive
from ebmscale.storage import Storage
from ebmscale.world import World


@dataclass(frozen=True)
class ImageSet:
    """Images of a packed set.

    Attributes:
        storage: where the shards are.
        manifest: what they hold.
        selection: which samples.
        split: what they are: "test", "validation", "train", or "all".
        held_out: the class that the model was not trained on.
        anomalous: that class's label, None where there is none.
        world: the ranks that share the chunks.
    """

    storage: Storage
    manifest: Manifest
    selection: Selection
    split: str
    held_out: HeldOutBlock
    anomalous: int | None
    world: World

    def __len__(self) -> int:
        return len(self.selection)

    def chunks(self) -> Iterator[Chunk]:
        """This rank's chunks."""
        return iter_chunks(self.storage, self.manifest, self.selection, self.world.rank, self.world.size)

    def protocol(self) -> dict[str, Any]:
        """What a record says about them."""
        held_out = {} if self.anomalous is None else {"held_out": self.held_out.model_dump()}
        return {"data": self.manifest.name, "split": self.split, "num_images": len(self)} | held_out


def open_images(
    model: LatentModel,
    storage: Storage,
    split: str,
    world: World,
    limit: int | None = None,
    with_anomalies: bool = False,
) -> ImageSet:
    """A split as the model's run defines it.

    Args:
        model: whose configuration says what is validation, and which class it was not trained on.
        storage: of the packed set.
        split: "test", "validation" or "train".
        world: ranks that share it.
        limit: images at most, those whose keys hash lowest.
        with_anomalies: with the class that was held out; without, the images are of the kind that the model has seen.

    Raises:
        DataError: there is no set, it is empty, or its images are not such as the model takes.
        ConfigError: no such split or class.
    """
    manifest = _fitting_manifest(model, storage)
    block = model.config.data
    anomalous = class_index(manifest, block.held_out)
    chosen = select(manifest, split, block.validation_fraction, block.held_out, with_anomalies)
    chosen = take(chosen, limit, None if with_anomalies else anomalous)
    if not len(chosen):
        raise DataError(f"The {split} split of {storage.url} has no images of the classes that the run was trained on.")
    return ImageSet(storage, manifest, chosen, split, block.held_out, anomalous, world)


def open_all_images(model: LatentModel, storage: Storage, world: World) -> ImageSet:
    """Every image of a set, whatever its part and label; raises as `open_images`."""
    manifest = _fitting_manifest(model, storage)
    return ImageSet(storage, manifest, select_all(manifest), "all", HeldOutBlock(), None, world)


def _fitting_manifest(model: LatentModel, storage: Storage) -> Manifest:
    manifest = Manifest.load(storage)
    if manifest.dtype != "uint8" or manifest.image_shape != model.image_shape:
        raise DataError(
            f"{storage.url} holds {manifest.dtype} arrays of shape {manifest.image_shape}, and the model takes uint8 "
            f"images of shape {model.image_shape}; pack images of that shape."
        )
    return manifest


def chunk_seed(seed: int, chunk: int) -> int:
    """The seed of what is drawn for a chunk, whichever rank has it."""
    return derive(seed, "evaluate", chunk)
