"""The architectures of the convolutional networks as data.

The generator uses the layers of an architecture from first to last, and the encoder mirrors them from last to first.
"""

from typing import NamedTuple

from ebmscale.errors import ConfigError

ImageShape = tuple[int, int, int]  # channels, height, width


class Layer(NamedTuple):
    """One transposed convolution (in the encoder: the convolution that mirrors it).

    Attributes:
        multiple: output channels in units of the network's width; 0 means the channels of the image.
        kernel: kernel size in pixels.
        stride: stride in pixels.
        padding: padding in pixels.
    """

    multiple: int
    kernel: int
    stride: int
    padding: int

    def channels(self, width: int, image_channels: int) -> int:
        """The number of output channels in a network of that width, for images of that many channels."""
        return self.multiple * width or image_channels


class Architecture(NamedTuple):
    """The side of the images in pixels, and the layers of the generator from the latent to the image."""

    size: int
    layers: tuple[Layer, ...]


# The first layer acts on a 1x1 grid, so the size of its kernel is the size of the first grid. The code of LEBM (Pang et
# al. 2020) has svhn (width 64), cifar10, celeba64 and celeba128 (width 128). digits and mnist follow the same pattern.
ARCHITECTURES: dict[str, Architecture] = {
    "digits": Architecture(8, (Layer(4, 4, 1, 0), Layer(2, 4, 2, 1), Layer(0, 3, 1, 1))),
    "mnist": Architecture(28, (Layer(4, 7, 1, 0), Layer(2, 4, 2, 1), Layer(0, 4, 2, 1))),
    "svhn": Architecture(32, (Layer(8, 4, 1, 0), Layer(4, 4, 2, 1), Layer(2, 4, 2, 1), Layer(0, 4, 2, 1))),
    "cifar10": Architecture(32, (Layer(8, 8, 1, 0), Layer(4, 4, 2, 1), Layer(2, 4, 2, 1), Layer(0, 3, 1, 1))),
    "celeba64": Architecture(
        64, (Layer(8, 4, 1, 0), Layer(4, 4, 2, 1), Layer(2, 4, 2, 1), Layer(1, 4, 2, 1), Layer(0, 4, 2, 1))
    ),
    "celeba128": Architecture(
        128,
        (
            Layer(16, 4, 1, 0),
            Layer(8, 4, 2, 1),
            Layer(4, 4, 2, 1),
            Layer(2, 4, 2, 1),
            Layer(1, 4, 2, 1),
            Layer(0, 4, 2, 1),
        ),
    ),
}


def find_architecture(image_shape: ImageShape, name: str | None = None) -> Architecture:
    """The architecture for images of that shape.

    Args:
        image_shape: (C, H, W).
        name: a name in `ARCHITECTURES`. None means the first one of that image size (at 32x32: svhn).

    Raises:
        ConfigError: no architecture makes images of that shape, or the named one does not.
    """
    channels, height, width = image_shape
    if name is not None and name not in ARCHITECTURES:
        raise ConfigError(
            f"There is no network architecture {name!r}; use one of {', '.join(ARCHITECTURES)}, residual."
        )
    fitting = {key: known for key, known in ARCHITECTURES.items() if known.size == height == width}
    if not fitting or channels < 1:
        sizes = ", ".join(f"{size}x{size}" for size in sorted({known.size for known in ARCHITECTURES.values()}))
        raise ConfigError(
            f"There is no network for images of {channels} channels and {height}x{width} pixels; "
            f"the supported sizes are {sizes}: resize the images when packing them, or use the form residual."
        )
    if name is None:
        return next(iter(fitting.values()))
    if name not in fitting:
        raise ConfigError(
            f"The network architecture {name!r} makes images of {ARCHITECTURES[name].size}x{ARCHITECTURES[name].size} "
            f"pixels, not {height}x{width}; for these use {' or '.join(fitting)}."
        )
    return fitting[name]
