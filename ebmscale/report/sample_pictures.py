"""Pictures of a model's samples: a grid where they are images, else points in the plane of their largest spread.

Shapes: N samples, M held-out posterior latents, Z latent.
"""

import torch
from torch import Tensor

from ebmscale.model.image_grid import image_grid
from ebmscale.model.latent_model import LatentModel
from ebmscale.report import pictures

TILE_PIXELS = 64  # images are enlarged to about this side
NUM_POINTS = 1024


def num_shown(model: LatentModel, num_images: int) -> int:
    """How many samples a picture shows: `num_images`, or `NUM_POINTS` where they are not images."""
    return num_images if model.shows_images else NUM_POINTS


def sample_grid(model: LatentModel, images: Tensor, columns: int) -> bytes:
    """A PNG with a grid of images (N, C, H, W) in [-1, 1] of the model. Small images are enlarged."""
    return image_grid(images, columns, scale=max(1, TILE_PIXELS // max(model.image_shape[1:])))


def sample_picture(model: LatentModel, z: Tensor, columns: int, posteriors: Tensor | None = None) -> bytes:
    """A PNG of samples at latents z (N, Z).

    Args:
        model: decodes them.
        z: the latents.
        columns: of a grid of images.
        posteriors: (M, Z) of held-out samples, which are drawn below points, and whose plane is used.
    """
    if model.shows_images:
        return sample_grid(model, model.decode(z), columns)
    return pictures.point_cloud(*_in_plane(z, z if posteriors is None else posteriors))


def _in_plane(z: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N, 2) and (M, 2): the first two principal coordinates of the reference (M, Z)."""
    mean = reference.double().mean(0)
    _, _, axes = torch.linalg.svd(reference.double() - mean, full_matrices=False)
    signs = axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()  # the same plane looks the same again
    plane = (axes[:2] * signs).T
    points, of_reference = (z.double() - mean) @ plane, (reference.double() - mean) @ plane
    if plane.shape[1] == 1:
        points, of_reference = (torch.cat([one, torch.zeros_like(one)], 1) for one in (points, of_reference))
    return points, of_reference
