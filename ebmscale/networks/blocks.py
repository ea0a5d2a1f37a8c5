"""What the networks share: the layers of our own, seeded initialisation, and building without global RNG.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
HE_GAIN = math.sqrt(2 / (1 + LEAKY_SLOPE**2))
IMAGE_GAIN = 0.1
QUIET_GAIN = 0.6
MOST_FREQUENCY = 32.0

Network = TypeVar("Network", bound=nn.Module)


class LatentToGrid(nn.Module):
    """A transposed convolution of a 1x1 grid, computed as the matrix product that it is.

    Equal to `nn.ConvTranspose2d(latent_dim, channels, size)` on `z[:, :, None, None]`, with the same parameters;
    `weight` holds that layer's weight, flattened from (Z, C, H, W) to (Z, C*H*W).
    """

    def __init__(self, latent_dim: int, channels: int, size: int) -> None:
        super().__init__()
        self.grid_shape = (channels, size, size)
        self.weight = nn.Parameter(torch.empty(latent_dim, channels * size * size))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.weight, std=latent_dim**-0.5)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (B, Z) to a grid of features (B, C, H, W)."""
        return (z @ self.weight).unflatten(1, self.grid_shape) + self.bias[:, None, None]


class ZeroLinear(nn.Linear):
    """A linear layer that starts at exactly zero, so that the network starts as the zero function."""

    def reset_parameters(self) -> None:
        """Sets weight and, if there is one, bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class QuietLinear(nn.Linear):
    """A linear layer that starts with smaller weights (`QUIET_GAIN`), for outputs that are squared."""


class WaveLinear(nn.Linear):
    """A linear layer whose outputs are the phases of waves: random directions, shifts, and frequencies at start.

    The angular frequencies are spread evenly in their logarithm from 1 to `MOST_FREQUENCY`, in units of the input.
    """

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draws weights and shifts."""
        count, dim = self.weight.shape
        direction = torch.randn(count, dim, generator=generator, device=generator.device)
        frequency = MOST_FREQUENCY ** torch.linspace(0, 1, count, device=generator.device)
        self.weight.copy_(direction * (frequency / direction.norm(dim=1))[:, None])
        self.bias.copy_(2 * math.pi * torch.rand(count, generator=generator, device=generator.device))


class ImageLayer(nn.ConvTranspose2d):
    """The generator's last layer, which starts small (`IMAGE_GAIN`), so that the posterior chain starts stable.

    The curvature of |x - g(z)|^2 / (2 sigma^2) in z is J^T J / sigma^2, and a Langevin step s needs s < 2 sigma /
    sqrt(largest eigenvalue of J^T J). With He's gain here too, that would be a step of 0.09 at 28x28 and 0.03 at
    128x128 with sigma 0.3, below the usual 0.1: the chain would diverge before the first update.
    """


def build(make: Callable[[], Network], generator: torch.Generator) -> Network:
    """Makes a network on the CPU with its weights drawn from `generator` alone.

    The constructor runs on the meta device, where torch's own initialisation draws nothing, so that torch's global
    RNG is neither read nor moved.

    Args:
        make: calls the network's constructor.
        generator: where the weights come from; it moves on.
    """
    with torch.device("meta"):
        network = make()
    network.to_empty(device="cpu")
    initialise(network, generator)
    return network


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draws every weight of `module` anew from `generator`; biases and `ZeroLinear` become zero.

    Weights are normal with He's variance for LeakyReLU(0.2), which keeps the scale of the features through any depth,
    and smaller in `ImageLayer` and `QuietLinear`; a `WaveLinear` draws its own. They are drawn in float32 on the
    generator's device, in the order of `module.modules()`: the same generator gives the same weights wherever the
    module lies.
    """
    for layer in module.modules():
        if isinstance(layer, ZeroLinear):
            layer.reset_parameters()
        elif isinstance(layer, WaveLinear):
            layer.draw(generator)
        elif isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, LatentToGrid)):
            quiet = {ImageLayer: IMAGE_GAIN, QuietLinear: QUIET_GAIN}
            noise = torch.randn(layer.weight.shape, generator=generator, device=generator.device)
            layer.weight.copy_(noise * (quiet.get(type(layer), HE_GAIN) / math.sqrt(_fan_in(layer))))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _fan_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d | LatentToGrid) -> float:
    """How many inputs reach one output of `layer`, away from the border."""
    if isinstance(layer, nn.ConvTranspose2d):  # a stride of s leaves one in s*s kernel positions for each output
        return layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
    if isinstance(layer, LatentToGrid):
        return layer.weight.shape[0]
    return layer.weight[0].numel()


def count_parameters(module: nn.Module) -> int:
    """The number of trainable numbers in `module`."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
