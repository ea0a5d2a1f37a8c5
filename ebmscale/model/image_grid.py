"""A grid of images as a PNG file. Shapes: N images, C H W image."""

import io

import numpy as np
from PIL import Image
from torch import Tensor

from ebmscale.model.pixels import to_images

GAP = 2  # pixels between the images of a grid


def image_grid(images: Tensor, columns: int, scale: int = 1) -> bytes:
    """A PNG with a grid of images on white, with thin gaps.

    Args:
        images: (N, C, H, W) in [-1, 1]. One channel is grey, three are RGB. Further channels are not shown.
        columns: number of images in a row.
        scale: factor by which images are enlarged, without interpolation.
    """
    num, channels, height, width = images.shape
    shown = images[:, :3] if channels >= 3 else images[:, :1]
    pixels = to_images(shown).permute(0, 2, 3, 1).numpy()
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    rows, step_y, step_x = -(-num // columns), height * scale + GAP, width * scale + GAP
    canvas = np.full((rows * step_y - GAP, columns * step_x - GAP, pixels.shape[3]), 255, np.uint8)
    for index, image in enumerate(pixels):
        y, x = index // columns * step_y, index % columns * step_x
        canvas[y : y + height * scale, x : x + width * scale] = image
    out = io.BytesIO()
    Image.fromarray(canvas.squeeze(2) if canvas.shape[2] == 1 else canvas).save(out, "PNG", optimize=True)
    return out.getvalue()
