"""The data of a run: the packed set, this rank's held-out images, and the stream of batches.

Shapes: B held-out images of this rank, C H W of an image.
"""

from dataclasses import dataclass

from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.data.cache import RangeCache
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import select
from ebmscale.data.stream import Batching, ImageStream
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
        split = select(self.manifest, "train", block.validation_fraction, block.held_out)
        batching = Batching(config.train.batch_size, config.run.seed, block.num_streams, block.shuffle_window)
        return ImageStream(
            self.storage,
            self.manifest,
            split,
            batching,
            rank=world.rank,
            size=world.size,
            start=start,
            max_damaged=block.max_damaged,
            cache=cache,
        )
