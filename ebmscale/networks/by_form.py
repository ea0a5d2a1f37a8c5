"""The generator and the encoder of images that a configuration names by form."""

from torch import nn

from ebmscale.networks import residual
from ebmscale.networks.architectures import ARCHITECTURES, ImageShape
from ebmscale.networks.encoder import Encoder
from ebmscale.networks.generator import Generator
from ebmscale.networks.residual import ResidualEncoder, ResidualGenerator
from ebmscale.networks.two_layers import TwoLayerGenerator, TwoLayers


def image_generator(
    latent_dim: int, image_shape: ImageShape, width: int, form: str | None = None, top: int = 0
) -> nn.Module:
    """A generator of this package, with weights that are not drawn yet.

    Args:
        latent_dim: Z.
        image_shape: (C, H, W).
        width: the unit in which the form counts channels.
        form: `residual`, or a name in `ARCHITECTURES`; None means the first one of the image size, and `residual` if
            there is none.
        top: coordinates of the upper layer of two layers of latents; 0 is one layer.

    Raises:
        ConfigError: the form does not make images of that shape.
    """
    network: nn.Module
    if _is_residual(image_shape, form):
        network = ResidualGenerator(latent_dim, image_shape, width)
    else:
        network = Generator(latent_dim, image_shape, width, form)
    return TwoLayerGenerator(TwoLayers(latent_dim, top), network) if top else network


def image_encoder(image_shape: ImageShape, latent_dim: int, width: int, form: str | None = None) -> nn.Module:
    """An encoder of this package, with weights that are not drawn yet. See `image_generator`."""
    if _is_residual(image_shape, form):
        return ResidualEncoder(image_shape, latent_dim, width)
    return Encoder(image_shape, latent_dim, width, form)


def check_side(image_shape: ImageShape) -> None:
    """Checks that some form makes images of that shape. Raises ConfigError."""
    residual.checked_side(image_shape)


def _is_residual(image_shape: ImageShape, form: str | None) -> bool:
    has_other = any(one.size == image_shape[1] == image_shape[2] for one in ARCHITECTURES.values())
    return form == residual.FORM or (form is None and not has_other)
