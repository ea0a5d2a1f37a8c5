"""A grid of images of the current prior, which shows the progress of a run.

Shapes: N images, C H W image.
"""

import numpy as np
import torch

from ebmscale.model.pixels import to_images
from ebmscale.networks import weight_of
from ebmscale.training.run import Run

COLUMNS = 8


def sample_picture(run: Run) -> np.ndarray:
    """The generator's images at samples of the prior on this rank, as uint8 (height, width, 3)."""
    generator = run.sampling.model.generator
    weights = weight_of(generator)
    with torch.no_grad():
        z = run.stages.shown(COLUMNS**2)
        return grid(to_images(generator(z.to(weights.device, weights.dtype))).cpu().numpy())


def grid(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) of uint8 in rows of `COLUMNS`, as one picture (height, width, 3). Empty places are black."""
    num, channels, height, width = images.shape
    rows = -(-num // COLUMNS)
    whole = np.zeros((rows * COLUMNS, channels, height, width), dtype=np.uint8)
    whole[:num] = images
    tiles = whole.reshape(rows, COLUMNS, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * height, COLUMNS * width, channels)
    return np.broadcast_to(picture[..., -3:], (*picture.shape[:2], 3)).copy()
