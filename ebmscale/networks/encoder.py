"""The encoder: a diagonal Gaussian approximation of the posterior. Its layers mirror those of the generator.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

from ebmscale.networks.architectures import ImageShape, find_architecture
from ebmscale.networks.blocks import LEAKY_SLOPE, ZeroLinear, bounded_log_std, build


class Encoder(nn.Module):
    """Maps images (B, C, H, W) to the mean and the log standard deviation (B, Z) of a diagonal Gaussian.

    Its last layer starts at zero, so it starts as the standard normal for every image. `build_encoder` makes one with
    seeded weights.
    """

    def __init__(self, image_shape: ImageShape, latent_dim: int, width: int, architecture: str | None = None) -> None:
        """Makes the layers.

        Args:
            image_shape: (C, H, W), of an image size in `ARCHITECTURES`.
            latent_dim: Z.
            width: the unit in which the architecture counts channels.
            architecture: a name in `ARCHITECTURES`; None means the first one of the image size.

        Raises:
            ConfigError: there is no architecture for images of that shape.
        """
        super().__init__()
        first, *rest = find_architecture(image_shape, architecture).layers
        outputs = [layer.channels(width, image_shape[0]) for layer in (first, *rest)]
        layers: list[nn.Module] = []
        for layer, in_channels, out_channels in reversed(list(zip(rest, outputs[1:], outputs[:-1], strict=True))):
            layers.append(nn.Conv2d(in_channels, out_channels, layer.kernel, layer.stride, layer.padding))
            layers.append(nn.LeakyReLU(LEAKY_SLOPE))
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.output = ZeroLinear(outputs[0] * first.kernel**2, 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images (B, C, H, W) to (mean, log_std), each (B, Z); log_std is bounded."""
        mean_BZ, raw_BZ = self.output(self.features(x)).chunk(2, dim=1)
        return mean_BZ, bounded_log_std(raw_BZ)


def build_encoder(
    image_shape: ImageShape, latent_dim: int, width: int, architecture: str | None = None, *, generator: torch.Generator
) -> Encoder:
    """An `Encoder` on the CPU whose weights come from `generator` alone; the other arguments are the constructor's."""
    return build(lambda: Encoder(image_shape, latent_dim, width, architecture), generator)
