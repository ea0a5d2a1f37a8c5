"""Conversion between images (uint8) and pixels (float32 in [-1, 1]).

Shapes: B batch, C H W image.
"""

import torch
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images of any shape as float32 pixels in [-1, 1]."""
    return images.float() / 127.5 - 1


def mirrored(x: Tensor, uniform: Tensor) -> Tensor:
    """Images x (B, C, H, W), mirrored left to right where `uniform` (B,) in [0, 1) is below 0.5."""
    return torch.where(uniform[:, None, None, None] < 0.5, x.flip(3), x)


def to_images(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] of any shape as uint8 images, clipped and rounded. NaN becomes grey."""
    return ((pixels.float().nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
