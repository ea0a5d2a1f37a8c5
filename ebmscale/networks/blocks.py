"""Layers that several networks use, seeded initialisation, and construction without the global RNG.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
LOG_STD_BOUND = 5.0
HE_GAIN = math.sqrt(2 / (1 + LEAKY_SLOPE**2))
IMAGE_GAIN = 0.1
SMALL_GAIN = 0.6
MOST_FREQUENCY = 32.0

Network = TypeVar("Network", bound=nn.Module)


class LatentToGrid(nn.Module):
    """A transposed convolution of a 1x1 grid, computed as a matrix product.

    It equals `nn.ConvTranspose2d(latent_dim, channels, size)` on `z[:, :, None, None]`, with the same parameters.
    `weight` is the weight of that layer, flattened from (Z, C, H, W) to (Z, C*H*W).
    """

    def __init__(self, latent_dim: int, channels: int, size: int) -> None:
        super().__init__()
        self.grid_shape = (channels, size, size)
        self.weight = nn.Parameter(torch.empty(latent_dim, channels * size * size))
        self.bias = nn.Parameter(torch.zeros(channels))
        bound = math.sqrt(3 / latent_dim)
        nn.init.uniform_(self.weight, -bound, bound)  # normal_ on the meta device would import torch._dynamo, 1.4 s

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (B, Z) to a grid of features (B, C, H, W)."""
        return (z @ self.weight).unflatten(1, self.grid_shape) + self.bias[:, None, None]


class ZeroLinear(nn.Linear):
    """A linear layer whose weights start at zero. A network with this last layer starts as the zero function."""

    def reset_parameters(self) -> None:
        """Sets weight and, if there is one, bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroConv(nn.Conv2d):
    """A convolution whose weights start at zero. A residual block that ends in it starts as the identity."""

    def reset_parameters(self) -> None:
        """Sets weight and, if there is one, bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class SmallLinear(nn.Linear):
    """A linear layer with smaller initial weights (`SMALL_GAIN`, not `HE_GAIN`), for outputs that are squared."""

    gain = SMALL_GAIN


class WaveLinear(nn.Linear):
    """A linear layer whose outputs are the phases of random Fourier features.

    Directions and shifts are random. The angular frequencies are spaced evenly in their logarithm, from 1 to
    `MOST_FREQUENCY` radians per unit of the input.
    """

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draws weights and shifts from `generator`."""
        count, dim = self.weight.shape
        direction = torch.randn(count, dim, generator=generator, device=generator.device)
        frequency = MOST_FREQUENCY ** torch.linspace(0, 1, count, device=generator.device)
        self.weight.copy_(direction * (frequency / direction.norm(dim=1))[:, None])
        self.bias.copy_(2 * math.pi * torch.rand(count, generator=generator, device=generator.device))


class ImageLayer(nn.ConvTranspose2d):
    """The last layer of the generator. Its small initial weights (`IMAGE_GAIN`) make the first posterior chains stable.

    The curvature of |x - g(z)|^2 / (2 sigma^2) in z is J^T J / sigma^2. A Langevin step s is stable if s < 2 sigma /
    sqrt(largest eigenvalue of J^T J). With He's gain in this layer too, the limit would be 0.09 at 28x28 and 0.03 at
    128x128 with sigma 0.3. The usual step of 0.1 is above it: the chain would diverge before the first update.
    """

    gain = IMAGE_GAIN


def build(make: Callable[[], Network], generator: torch.Generator) -> Network:
    """Makes a network on the CPU whose weights are drawn from `generator` alone.

    The constructor runs on the meta device, where torch's own initialisation draws no numbers. So the global RNG of
    torch does not change.

    Args:
        make: calls the constructor of the network.
        generator: the source of the weights. Its state advances.
    """
    with torch.device("meta"):
        network = make()
    network.to_empty(device="cpu")
    initialise(network, generator)
    return network


def bounded_log_std(raw: Tensor, bound: float = LOG_STD_BOUND) -> Tensor:
    """Log standard deviations within +-`bound`, so that they and the KL divergence cannot overflow or collapse.

    A tanh makes the bound: unlike a clamp it has a gradient at the bound. Near zero it is the identity.
    """
    return bound * torch.tanh(raw / bound)


@torch.no_grad()
def take_features(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies the hidden layers of another network of the same form, and leaves layers that start at zero as they are.

    Args:
        module: the network.
        weights: the state dict of the other one.
    """
    for prefix, layer in module.named_modules():
        if not isinstance(layer, ZeroLinear | ZeroConv):
            for name, parameter in layer.named_parameters(prefix, recurse=False):
                parameter.copy_(weights[name])


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Redraws every weight of `module` from `generator`. Biases, `ZeroLinear` and `ZeroConv` become zero.

    Weights are normal with the variance of He et al. (2015) for LeakyReLU(0.2), so the scale of the features does not
    depend on the depth. A layer with a `gain` has that in place of He's, and `WaveLinear` has its own `draw`. All are
    drawn in float32 on the device of the generator, in the order of `module.modules()`. So the same generator gives the
    same weights on every device of the module.
    """
    for layer in module.modules():
        if isinstance(layer, ZeroLinear | ZeroConv):
            layer.reset_parameters()
        elif isinstance(layer, WaveLinear):
            layer.draw(generator)
        elif isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, LatentToGrid)):
            gain: float = getattr(layer, "gain", HE_GAIN)
            noise = torch.randn(layer.weight.shape, generator=generator, device=generator.device)
            layer.weight.copy_(noise * (gain / math.sqrt(_fan_in(layer))))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _fan_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d | LatentToGrid) -> float:
    """The number of inputs of one output of `layer`, away from the border."""
    if isinstance(layer, nn.ConvTranspose2d):  # with a stride of s, one in s*s kernel positions reaches an output
        return layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
    if isinstance(layer, LatentToGrid):
        return layer.weight.shape[0]
    return layer.weight[0].numel()


def weight_of(module: nn.Module) -> Tensor:
    """A floating weight or constant of a network, which tells its type and its device."""
    tensors = (*module.parameters(), *module.buffers())
    found = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    return torch.zeros(0) if found is None else found


def count_parameters(module: nn.Module) -> int:
    """The number of weights in `module`, also of those that are not being trained."""
    return sum(parameter.numel() for parameter in module.parameters())
