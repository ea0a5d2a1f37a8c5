"""The data of a run: the packed set, this rank's held-out images, and the stream of batches.

Shapes: B held-out images of this rank, C H W of an image.
"""

from dataclasses import dataclass

from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.data.cache import RangeCache
from ebmscale.data.manifest import Manifest
from ebmscale.data.stream import ImageStream
from ebmscale.storage import Storage
from ebmscale.world import World


@dataclass(frozen=True)
class TrainingSet:
    """The data of a run on this rank.

    Attributes:
        storage: where the shards are.
        manifest: of the set.
        held_out: this rank's held-out images as pixels (B, C, H, W).
        held_out_streams: their streams (B,).
    """

    storage: Storage
    manifest: Manifest
    held_out: Tensor
    held_out_streams: Tensor

    def stream(self, config: RunConfig, world: World, start: int) -> ImageStream:
        """This rank's batches from position `start` on."""
        block = config.data
        cache = None
        if block.cache and self.storage.local_path() is None:
            cache = RangeCache(self.storage, self.manifest, block.cache, block.cache_bytes)
        return ImageStream(
            self.storage,
            self.manifest,
            split="train",
            batch_size=config.train.batch_size,
            seed=config.run.seed,
            num_streams=block.num_streams,
            window=block.shuffle_window,
            rank=world.rank,
            size=world.size,
            start=start,
            max_damaged=block.max_damaged,
            validation_fraction=block.validation_fraction,
            held_out=block.held_out,
            cache=cache,
        )
