"""The residual form of generator and encoder: any square image with sides from 8 to 256 pixels.

The generator begins on a grid of 4 to 8 pixels a side and doubles it up to half the side of the image, with one block
at each level. A last convolution gives the four pixels of each 2x2 window, which are rearranged into the image. So no
layer works at the full resolution, where a CPU would spend most of its time. There is no normalisation. Every block
starts as the identity, so generator and encoder start almost linear, and learn from the first update on.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmscale.errors import ConfigError
from ebmscale.networks.architectures import ImageShape
from ebmscale.networks.blocks import IMAGE_GAIN, LEAKY_SLOPE, LatentToGrid, ZeroConv, ZeroLinear, bounded_log_std

FORM = "residual"
LEAST_SIDE, MOST_SIDE = 8, 256
GRID = 8
"""Largest side of the first grid in pixels."""
MOST_MULTIPLE = 8
"""Largest number of channels of a level, in units of the width."""
START_SPREAD = 1.5
"""Bound on the root mean square of the initial Jacobian's singular values (see `ImageConv`)."""


class ConvBlock(nn.Module):
    """x + conv(act(conv(act(x)))). It starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE),
            ZeroConv(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, H, W) to features of the same shape."""
        out: Tensor = x + self.branch(x)
        return out


class EvenConv(nn.Conv2d):
    """A convolution whose output has the mean square of its input at the start, for paths without activations."""

    gain = 1.0


class ImageConv(nn.Conv2d):
    """The last convolution of the generator. Its small initial weights make the first posterior chains stable.

    The reason is that of `blocks.ImageLayer`. The root mean square of the singular values of the initial Jacobian is
    about gain * sqrt(pixels / Z). So the gain falls with the number of pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, latent_dim: int, num_pixels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.gain = min(IMAGE_GAIN, START_SPREAD * math.sqrt(latent_dim / num_pixels))


class Doubled(nn.Module):
    """Features of other channels and of twice the side, cut to `side` pixels; every pixel becomes a window of 2x2."""

    def __init__(self, in_channels: int, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv = EvenConv(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, H, W) to (B, C', side, side)."""
        return F.interpolate(self.conv(x), scale_factor=2, mode="nearest")[:, :, : self.side, : self.side]


class ResidualGenerator(nn.Module):
    """Maps latents (B, Z) to images (B, C, H, W) in [-1, 1].

    Args:
        latent_dim: Z.
        image_shape: (C, H, W), square.
        width: channels of the last level. A level of half the side has twice as many, up to `MOST_MULTIPLE` times.

    Raises:
        ConfigError: images are not square, or their side is not one that the form makes.
    """

    def __init__(self, latent_dim: int, image_shape: ImageShape, width: int) -> None:
        super().__init__()
        channels, self.side = image_shape[0], checked_side(image_shape)
        levels = levels_of(self.side, width)
        before, grid = levels[0]
        layers: list[nn.Module] = [LatentToGrid(latent_dim, before, grid)]
        for after, side in levels:
            if side != grid:
                layers.append(Doubled(before, after, side))
            layers.append(ConvBlock(after))
            before = after
        layers.append(nn.LeakyReLU(LEAKY_SLOPE))
        layers.append(ImageConv(before, 4 * channels, latent_dim, channels * self.side**2))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (B, Z) to images (B, C, H, W) in [-1, 1]."""
        first, *rest = self.layers
        features = first(z).contiguous(memory_format=torch.channels_last)
        for layer in rest:
            features = layer(features)
        return torch.tanh(windows_as_pixels(features, self.side))


class ResidualEncoder(nn.Module):
    """Maps images (B, C, H, W) to the mean and the log standard deviation (B, Z), as `encoder.Encoder` does.

    The levels are those of the generator in reverse. The arguments and errors are those of `ResidualGenerator`.
    """

    def __init__(self, image_shape: ImageShape, latent_dim: int, width: int) -> None:
        super().__init__()
        channels, side = image_shape[0], checked_side(image_shape)
        self.padding = side % 2
        levels = levels_of(side, width)[::-1]
        before, below = levels[0]
        layers: list[nn.Module] = [EvenConv(4 * channels, before, 3, padding=1), ConvBlock(before)]
        for after, side in levels[1:]:
            layers += [EvenConv(before, after, 2, stride=2, padding=below % 2), ConvBlock(after)]
            before, below = after, side
        self.features = nn.Sequential(*layers, nn.LeakyReLU(LEAKY_SLOPE), nn.Flatten())
        self.output = ZeroLinear(before * below**2, 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images (B, C, H, W) to (mean, log_std), each (B, Z)."""
        whole = F.pad(x, (0, self.padding, 0, self.padding))
        windows = F.pixel_unshuffle(whole, 2).contiguous(memory_format=torch.channels_last)
        mean, raw = self.output(self.features(windows)).chunk(2, dim=1)
        return mean, bounded_log_std(raw)


def windows_as_pixels(x: Tensor, side: int) -> Tensor:
    """The pixels of each 2x2 window, which are channels of x (B, 4 C, H, W), as features (B, C, side, side)."""
    return F.pixel_shuffle(x, 2)[:, :, :side, :side]


def levels_of(side: int, width: int) -> list[tuple[int, int]]:
    """Channels and side of every level of the generator, the first grid first."""
    levels = [(width, math.ceil(side / 2))]
    while levels[0][1] > GRID:
        channels, below = levels[0]
        levels.insert(0, (min(2 * channels, MOST_MULTIPLE * width), math.ceil(below / 2)))
    return levels


def checked_side(image_shape: ImageShape) -> int:
    """The side of square images. Raises ConfigError where the form does not make such images."""
    channels, height, width = image_shape
    if channels < 1 or height != width or not LEAST_SIDE <= height <= MOST_SIDE:
        raise ConfigError(
            f"There is no network for images of {channels} channels and {height}x{width} pixels; images must be "
            f"square, with sides from {LEAST_SIDE} to {MOST_SIDE} pixels: crop and resize them when packing them."
        )
    return height
