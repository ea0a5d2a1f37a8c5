"""A grid of images of the current prior, which shows the progress of a run.

Shapes: N images, C H W image, Z latent.
"""

import numpy as np
import torch
from torch import Tensor

from ebmscale.model.pixels import to_images
from ebmscale.model.sampler import draw_density
from ebmscale.networks import weight_of
from ebmscale.seeds import derive
from ebmscale.training.run import Run

COLUMNS = 8


def sample_picture(run: Run) -> np.ndarray:
    """The generator's images at samples of the prior, as uint8 (height, width, 3); see `LatentModel.sample_prior`.

    For a prior that is learned on chains, the samples are this rank's held-out chains.
    """
    generator = run.sampling.model.generator
    weights = weight_of(generator)
    with torch.no_grad():
        return grid(to_images(generator(_latents(run).to(weights.device, weights.dtype))).cpu().numpy())


def _latents(run: Run) -> Tensor:
    """Samples (N, Z) of the prior as it is now."""
    if run.config.uses_density:
        seed = derive(run.config.run.seed, "sample-picture", run.samples_seen)
        return draw_density(run.stages.prior.to("cpu"), COLUMNS**2, seed).z
    return run.stages.latents.tables["held_out_pool"].z.flatten(0, -2)[: COLUMNS**2]


def grid(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) of uint8 in rows of `COLUMNS`, as one picture (height, width, 3). Empty places are black."""
    num, channels, height, width = images.shape
    rows = -(-num // COLUMNS)
    whole = np.zeros((rows * COLUMNS, channels, height, width), dtype=np.uint8)
    whole[:num] = images
    tiles = whole.reshape(rows, COLUMNS, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * height, COLUMNS * width, channels)
    return np.broadcast_to(picture[..., -3:], (*picture.shape[:2], 3)).copy()
