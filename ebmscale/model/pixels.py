"""Images as bytes and as pixels.

Shapes: B batch, C H W image. Pixels are in [-1, 1].
"""

import torch
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images 0..255 as float32 pixels in [-1, 1]."""
    return images.float() / 127.5 - 1


def mirrored(x: Tensor, uniform: Tensor) -> Tensor:
    """Images x (B, C, H, W), those whose number (B,) in [0, 1) is below a half mirrored left to right."""
    return torch.where(uniform[:, None, None, None] < 0.5, x.flip(3), x)


def to_images(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8 images, clipped and rounded; what is not a number becomes grey."""
    return ((pixels.float().nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
