"""A grid of images of the current prior's chains, to look at while a run trains.

Shapes: N images, C H W image, Z latent.
"""

import numpy as np
import torch

from ebmscale.model.pixels import to_images
from ebmscale.training.run import Run

COLUMNS = 8


@torch.no_grad()
def sample_picture(run: Run) -> np.ndarray:
    """The generator's images at the held-out chains of the prior on this rank, as uint8 (height, width, 3)."""
    z = run.stages.latents.pools.held_out.z.flatten(0, -2)[: COLUMNS**2]
    generator = run.sampling.model.generator
    return grid(to_images(generator(z.to(next(generator.parameters()).dtype))).cpu().numpy())


def grid(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) of uint8 in rows of `COLUMNS`, as one picture (height, width, 3); places left are black."""
    num, channels, height, width = images.shape
    rows = -(-num // COLUMNS)
    whole = np.zeros((rows * COLUMNS, channels, height, width), dtype=np.uint8)
    whole[:num] = images
    tiles = whole.reshape(rows, COLUMNS, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * height, COLUMNS * width, channels)
    return np.broadcast_to(picture[..., -3:], (*picture.shape[:2], 3)).copy()
