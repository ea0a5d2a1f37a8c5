"""Ratio networks for samples of any kind: quadratic, convolutional, and one that standardises its input.

Shapes: ... any leading axes, Z coordinates, C H W image (Z = C H W).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebmscale.errors import ConfigError
from ebmscale.networks.architectures import ImageShape
from ebmscale.networks.blocks import LEAKY_SLOPE, WaveLinear, ZeroConv, ZeroLinear
from ebmscale.networks.ratio_net import ACTIVATIONS, RatioNet

NARROW_BOUND, WIDE_BOUND = 5.0, 16.0
"""Bounds of a ratio in nats, where the two sides are hard to tell apart and where they hardly overlap."""


class QuadraticHead(nn.Module):
    """z^T A z + b^T z + c, which represents the log ratio of any two Gaussians. It starts as the zero function."""

    def __init__(self, dim: int):
        super().__init__()
        self.quadratic = ZeroLinear(dim, dim, bias=False)
        self.linear = ZeroLinear(dim, 1)

    @torch.no_grad()
    def assign(self, quadratic: Tensor, linear: Tensor, constant: Tensor) -> None:
        """Sets A (Z, Z), b (Z,) and c ()."""
        self.quadratic.weight.copy_(quadratic)
        self.linear.weight.copy_(linear[None])
        self.linear.bias.copy_(constant)

    def forward(self, z: Tensor) -> Tensor:
        """Maps points (..., Z) to (...)."""
        return (self.quadratic(z) * z).sum(-1) + self.linear(z).squeeze(-1)


class ConvRatioNet(nn.Module):
    """Convolutions that map flattened images (..., Z) to log_ratio (...). It starts as the zero function.

    Every layer of `widths` halves the sides of the image.
    """

    def __init__(self, image_shape: ImageShape, widths: Sequence[int] = (32, 64)):
        super().__init__()
        self.image_shape = tuple(image_shape)
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out_channels in widths:
            layers += [nn.Conv2d(channels, out_channels, 3, stride=2, padding=1), nn.LeakyReLU(LEAKY_SLOPE)]
            channels, height, width = out_channels, math.ceil(height / 2), math.ceil(width / 2)
        self.layers = nn.Sequential(*layers, nn.Flatten(), ZeroLinear(channels * height * width, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Maps flattened images (..., Z) to log_ratio (...)."""
        images = z.reshape(-1, *self.image_shape)
        return self.layers(images).view(z.shape[:-1])


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))), with a halving convolution before it where `in_channels` differ or sides halve."""

    def __init__(self, in_channels: int, channels: int, stride: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.entry = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.branch = nn.Sequential(
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation(),
            ZeroConv(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps maps (B, C, H, W) to (B, C', H', W')."""
        x = self.entry(x)
        out: Tensor = x + self.branch(x)
        return out


class ResidualRatioNet(nn.Module):
    """Residual convolutions that map flattened maps (..., Z) to log_ratio (...). It starts as the zero function.

    Every level has a residual block. The first level keeps the sides of the map, every other one halves them.

    Args:
        latent_shape: (C, H, W), with Z = C H W.
        channels: of the levels.
        activation: a name in `ACTIVATIONS`.

    Raises:
        ConfigError: latents are not maps, or there is no such activation.
    """

    def __init__(self, latent_shape: Sequence[int], channels: Sequence[int] = (64, 64), activation: str = "silu"):
        super().__init__()
        if len(latent_shape) != 3:
            raise ConfigError(
                f"model.ratio.form: residual takes latents that are maps (C, H, W), not {list(latent_shape)}; set "
                "model.latent_shape, or choose the form perceptron."
            )
        if activation not in ACTIVATIONS:
            raise ConfigError(f"There is no activation {activation!r}; use one of {', '.join(ACTIVATIONS)}.")
        self.latent_shape = tuple(latent_shape)
        before, height, width = latent_shape
        blocks: list[nn.Module] = []
        for level, after in enumerate(channels):
            stride = 1 if level == 0 else 2
            blocks.append(ResidualBlock(before, after, stride, ACTIVATIONS[activation]))
            before, height, width = after, math.ceil(height / stride), math.ceil(width / stride)
        last = ZeroLinear(before * height * width, 1)
        self.layers = nn.Sequential(*blocks, ACTIVATIONS[activation](), nn.Flatten(), last)

    def forward(self, z: Tensor) -> Tensor:
        """Maps flattened maps (..., Z) to log_ratio (...)."""
        return self.layers(z.reshape(-1, *self.latent_shape)).view(z.shape[:-1])


class Waves(nn.Module):
    """Appends W random Fourier features, sines of random projections, to points (..., Z), giving (..., Z + W).

    A perceptron learns high frequencies slowly. With sines of many frequencies as inputs it learns them early (Tancik
    et al., NeurIPS 2020). This is for few dimensions: in many dimensions random directions rarely meet the structure.
    """

    def __init__(self, dim: int, num_waves: int):
        super().__init__()
        self.phases = WaveLinear(dim, num_waves)

    def forward(self, z: Tensor) -> Tensor:
        """Maps points (..., Z) to (..., Z + W)."""
        return torch.cat([z, self.phases(z).sin()], -1)


class Sum(nn.Module):
    """The sum of ratio networks."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, z: Tensor) -> Tensor:
        """Maps points (..., Z) to (...)."""
        return torch.stack([part(z) for part in self.parts]).sum(0)


class Bounded(nn.Module):
    """c - softplus(c - g) + log(1 + e^-c) of a ratio network g, with the bound c () as a buffer.

    Zero stays zero, and no point has more than about c: a few points then cannot carry all of the weights e^f. An
    infinite c, as at the start, leaves g as it is.
    """

    bound: Tensor

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.register_buffer("bound", torch.full((), math.inf))

    def forward(self, z: Tensor) -> Tensor:
        """Maps points (..., Z) to log_ratio (...)."""
        value = self.inner(z)
        # c - softplus(c - g), written so that a large or infinite c takes no digits away
        return value - softplus(value - self.bound) + torch.log1p(torch.exp(-self.bound))


def set_bound(network: nn.Module, bound: float) -> None:
    """Gives the bounded part of a ratio network that bound in nats; a network without one stays as it is."""
    for module in network.modules():
        if isinstance(module, Bounded):
            module.bound.fill_(bound)


class Standardised(nn.Module):
    """gain * inner((z - shift) / scale), with `shift` and `scale` (Z,) and `gain` () as buffers beside the weights.

    So every stage can standardise its inputs by the mean and standard deviation of its own samples, and a trained ratio
    can be scaled as a whole.
    """

    shift: Tensor
    scale: Tensor
    gain: Tensor

    def __init__(self, inner: nn.Module, dim: int):
        super().__init__()
        self.inner = inner
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("gain", torch.ones(()))

    def set_spread(self, shift: Tensor, scale: Tensor) -> None:
        """Sets `shift` and `scale`, both (Z,), and resets the gain to 1."""
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        self.gain.fill_(1.0)

    def forward(self, z: Tensor) -> Tensor:
        """Maps points (..., Z) to log_ratio (...)."""
        return self.gain * self.inner(self.standardised(z))

    def standardised(self, z: Tensor) -> Tensor:
        """The inputs of `inner` at points (..., Z)."""
        return (z - self.shift) / self.scale


def quadratic_part(network: nn.Module) -> QuadraticHead | None:
    """The quadratic head of a ratio network: the network itself or a term of its sum. None if it has none."""
    network = network.inner if isinstance(network, Bounded) else network
    parts = network.parts if isinstance(network, Sum) else [network]
    return next((part for part in parts if isinstance(part, QuadraticHead)), None)


def vector_ratio(
    dim: int,
    hidden: Sequence[int],
    activation: str,
    quadratic: bool,
    num_waves: int = 0,
    squares: bool = False,
    bounded: bool = False,
) -> nn.Module:
    """A multilayer perceptron, a quadratic head, or their sum. Without hidden layers and head it is linear.

    Args:
        dim: Z.
        hidden: widths of the hidden layers of the perceptron.
        activation: a name in `ACTIVATIONS`.
        quadratic: whether there is a quadratic head.
        num_waves: random Fourier features that the perceptron has as inputs beside the coordinates (see `Waves`).
        squares: whether its second layer sees the first one's units and their squares (see `ratio_net.WithSquares`).
        bounded: whether the perceptron's values are bounded (see `Bounded`).

    Raises:
        ConfigError: there is no such activation.
    """
    perceptron: nn.Module = RatioNet(dim + num_waves, hidden, activation, squares=squares)
    if num_waves:
        perceptron = nn.Sequential(Waves(dim, num_waves), perceptron)
    if bounded:
        perceptron = Bounded(perceptron)
    if not quadratic:
        return perceptron
    return Sum(QuadraticHead(dim), perceptron) if hidden else QuadraticHead(dim)
