"""The shapes of the convolutional networks as data: one table that the generator reads down and the encoder up."""

from typing import NamedTuple

from ebmscale.errors import ConfigError

ImageShape = tuple[int, int, int]  # channels, height, width


class Layer(NamedTuple):
    """One transposed convolution (in the encoder: the convolution that mirrors it).

    Attributes:
        multiple: output channels in units of the network's width; 0 stands for the image's own channels.
        kernel: kernel size.
        stride: stride.
        padding: padding.
    """

    multiple: int
    kernel: int
    stride: int
    padding: int

    def channels(self, width: int, image_channels: int) -> int:
        """The number of output channels in a network of that width for such images."""
        return self.multiple * width or image_channels


class Form(NamedTuple):
    """One network shape: the image size that it makes and its layers, from the latent to the image."""

    size: int
    layers: tuple[Layer, ...]


# The first layer acts on a 1x1 grid, so its kernel is the size of the first grid. LEBM's code has svhn (width 64),
# cifar10, celeba64 and celeba128 (width 128); digits and mnist are the same idea for their sizes.
FORMS: dict[str, Form] = {
    "digits": Form(8, (Layer(4, 4, 1, 0), Layer(2, 4, 2, 1), Layer(0, 3, 1, 1))),
    "mnist": Form(28, (Layer(4, 7, 1, 0), Layer(2, 4, 2, 1), Layer(0, 4, 2, 1))),
    "svhn": Form(32, (Layer(8, 4, 1, 0), Layer(4, 4, 2, 1), Layer(2, 4, 2, 1), Layer(0, 4, 2, 1))),
    "cifar10": Form(32, (Layer(8, 8, 1, 0), Layer(4, 4, 2, 1), Layer(2, 4, 2, 1), Layer(0, 3, 1, 1))),
    "celeba64": Form(
        64, (Layer(8, 4, 1, 0), Layer(4, 4, 2, 1), Layer(2, 4, 2, 1), Layer(1, 4, 2, 1), Layer(0, 4, 2, 1))
    ),
    "celeba128": Form(
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


def find_form(image_shape: ImageShape, name: str | None = None) -> Form:
    """The form for images of that shape.

    Args:
        image_shape: channels, height, width.
        name: a name in `FORMS`; None takes the first one of the image's size (at 32x32: svhn).

    Raises:
        ConfigError: no form makes such images, or the named one does not.
    """
    channels, height, width = image_shape
    if name is not None and name not in FORMS:
        raise ConfigError(f"There is no network form {name!r}; use one of {', '.join(FORMS)}.")
    fitting = {key: form for key, form in FORMS.items() if form.size == height == width}
    if not fitting or channels < 1:
        sizes = ", ".join(f"{size}x{size}" for size in sorted({form.size for form in FORMS.values()}))
        raise ConfigError(
            f"There is no network for images of {channels} channels and {height}x{width} pixels; "
            f"the supported sizes are {sizes}: resize the images when packing them."
        )
    if name is None:
        return next(iter(fitting.values()))
    if name not in fitting:
        raise ConfigError(
            f"The network form {name!r} makes {FORMS[name].size}x{FORMS[name].size} images, not {height}x{width}; "
            f"for these use {' or '.join(fitting)}."
        )
    return fitting[name]
