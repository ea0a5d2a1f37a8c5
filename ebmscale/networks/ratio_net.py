"""The ratio network: the log_ratio of one stage. The energy network of the LEBM baseline has the same layers.

Shapes: ... any leading axes, Z latent.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ebmscale.errors import ConfigError
from ebmscale.networks.blocks import LEAKY_SLOPE, SmallLinear, ZeroLinear, build

SQUARE_BOUND = 25.0

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "leaky_relu": partial(nn.LeakyReLU, LEAKY_SLOPE),
    "gelu": nn.GELU,
}


class WithSquares(nn.Module):
    """Appends to features a (..., H) their bounded squares c tanh(a^2 / c), giving (..., 2 H).

    The latents of an encoder and those of the prior differ first in their covariances, and a perceptron learns squares
    slowly. The squares are bounded so that a ratio grows at most linearly in |z| and p_k can be normalised.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (..., H) to (..., 2 H)."""
        return torch.cat([features, SQUARE_BOUND * torch.tanh(features.square() / SQUARE_BOUND)], dim=-1)


class RatioNet(nn.Module):
    """A multilayer perceptron that maps latents (..., Z) to log_ratio (...).

    It starts as the zero function, so a new stage does not change the prior until it is trained. It has no buffers and
    no state: `torch.func.functional_call` under `torch.vmap` evaluates the stacked weights of all stages together.
    `build_ratio_net` makes one with seeded weights.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int] = (200, 200),
        activation: str = "silu",
        squares: bool = False,
    ) -> None:
        """Makes the layers.

        Args:
            latent_dim: Z.
            hidden: the widths of the hidden layers.
            activation: a name in `ACTIVATIONS`.
            squares: whether the first hidden layer has `WithSquares` in place of an activation.

        Raises:
            ConfigError: there is no such activation.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"There is no activation {activation!r}; use one of {', '.join(ACTIVATIONS)}.")
        layers: list[nn.Module] = []
        width = latent_dim
        for out_features in hidden:
            if squares and not layers:
                layers += [SmallLinear(width, out_features), WithSquares()]
                width = 2 * out_features
            else:
                layers += [nn.Linear(width, out_features), ACTIVATIONS[activation]()]
                width = out_features
        self.layers = nn.Sequential(*layers, ZeroLinear(width, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (..., Z) to log_ratio (...)."""
        return self.layers(z).squeeze(-1)

    def times(self, weights: Mapping[str, Tensor], gain: float) -> dict[str, Tensor]:
        """The state dict of a network with the same layers that is `gain` times the network of `weights`."""
        output = f"layers.{len(self.layers) - 1}."
        return {name: gain * one if name.startswith(output) else one for name, one in weights.items()}


def build_ratio_net(
    latent_dim: int,
    hidden: Sequence[int] = (200, 200),
    activation: str = "silu",
    squares: bool = False,
    *,
    generator: torch.Generator,
) -> RatioNet:
    """A `RatioNet` on the CPU whose weights come from `generator` alone; the other arguments are the constructor's."""
    return build(lambda: RatioNet(latent_dim, hidden, activation, squares), generator)


class RatioNets(nn.Module):
    """K ratio networks with the same layers, each with its own latents: (K, N, Z) to (K, N)."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, z: Tensor) -> Tensor:
        """f_k(z_k) for every k: latents (K, N, Z) to (K, N)."""
        return torch.stack([net(part) for net, part in zip(self.nets, z, strict=True)])

    def stacked(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this module as the stacked weights (K, ...) of a `density.prior.RatioSequence`."""
        names = self.nets[0].state_dict()
        return {name: torch.stack([weights[f"nets.{k}.{name}"] for k in range(len(self.nets))]) for name in names}
