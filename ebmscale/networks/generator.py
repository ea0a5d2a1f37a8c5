"""The generator g(z): the transposed convolutions of LEBM (Pang et al. 2020), without normalisation layers.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

from ebmscale.networks.architectures import ImageShape, find_architecture
from ebmscale.networks.blocks import LEAKY_SLOPE, ImageLayer, LatentToGrid, build


class Generator(nn.Module):
    """Maps latents (B, Z) to images (B, C, H, W) in [-1, 1].

    `Generator(100, (3, 32, 32), 64)` has LEBM's 3,447,683 parameters for SVHN, `Generator(128, (3, 32, 32), 128,
    architecture="cifar10")` its 18,883,075 for CIFAR-10. `build_generator` makes one with seeded weights.
    """

    def __init__(self, latent_dim: int, image_shape: ImageShape, width: int, architecture: str | None = None) -> None:
        """Makes the layers.

        Args:
            latent_dim: Z.
            image_shape: (C, H, W), of an image size in `ARCHITECTURES`.
            width: the unit in which the architecture counts channels.
            architecture: a name in `ARCHITECTURES`; None means the first one of the image size.

        Raises:
            ConfigError: there is no architecture for images of that shape.
        """
        super().__init__()
        first, *rest = find_architecture(image_shape, architecture).layers
        channels = first.channels(width, image_shape[0])
        layers: list[nn.Module] = [LatentToGrid(latent_dim, channels, first.kernel)]
        for layer in rest:
            convolution = nn.ConvTranspose2d if layer.multiple else ImageLayer
            in_channels, channels = channels, layer.channels(width, image_shape[0])
            layers.append(nn.LeakyReLU(LEAKY_SLOPE))
            layers.append(convolution(in_channels, channels, layer.kernel, layer.stride, layer.padding))
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (B, Z) to images (B, C, H, W) in [-1, 1]."""
        return self.layers(z)


def build_generator(
    latent_dim: int, image_shape: ImageShape, width: int, architecture: str | None = None, *, generator: torch.Generator
) -> Generator:
    """A `Generator` on the CPU whose weights come from `generator` alone; the other arguments are the constructor's."""
    return build(lambda: Generator(latent_dim, image_shape, width, architecture), generator)
