"""Conversion between images (uint8) and pixels (float32 in [-1, 1]). Samples of other types are numbers as they are.

Shapes: B batch, C H W image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ebmscale.config import RunConfig


def to_pixels(images: Tensor) -> Tensor:
    """Images of whole numbers from 0 to 255 as float32 pixels in [-1, 1]; floats of any shape as they are."""
    return images.float() if images.is_floating_point() else images.float() / 127.5 - 1


def shows_images(config: RunConfig, shape: Sequence[int]) -> bool:
    """Whether samples of a run, of that shape, are pictures: (C, H, W) of 1 or 3 channels, and no latents."""
    return len(shape) == 3 and shape[0] in (1, 3) and not config.model.is_identity


def mirrored(x: Tensor, uniform: Tensor) -> Tensor:
    """Images x (B, C, H, W), mirrored left to right where `uniform` (B,) in [0, 1) is below 0.5."""
    return torch.where(uniform[:, None, None, None] < 0.5, x.flip(3), x)


def to_images(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] of any shape as uint8 images, clipped and rounded. NaN becomes grey."""
    return ((pixels.float().nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
