"""The ratio network: the log_ratio of one stage, and with the same layers the energy network of the LEBM baseline.

Shapes: ... any leading axes, Z latent.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ebmscale.errors import ConfigError
from ebmscale.models.blocks import LEAKY_SLOPE, ZeroLinear, build

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "leaky_relu": partial(nn.LeakyReLU, LEAKY_SLOPE),
    "gelu": nn.GELU,
}


class RatioNet(nn.Module):
    """A multilayer perceptron from latents (..., Z) to one log_ratio each (...).

    It starts as the zero function, so that a new stage changes nothing until it is trained. No buffers, no state:
    `torch.func.functional_call` under `torch.vmap` evaluates the stacked weights of all stages together.
    `build_ratio_net` makes one with seeded weights.
    """

    def __init__(self, latent_dim: int, hidden: Sequence[int] = (200, 200), activation: str = "silu") -> None:
        """Makes the layers.

        Args:
            latent_dim: Z.
            hidden: the widths of the hidden layers.
            activation: a name in `ACTIVATIONS`.

        Raises:
            ConfigError: there is no such activation.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"There is no activation {activation!r}; use one of {', '.join(ACTIVATIONS)}.")
        widths = (latent_dim, *hidden)
        layers: list[nn.Module] = []
        for in_features, out_features in pairwise(widths):
            layers += [nn.Linear(in_features, out_features), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, ZeroLinear(widths[-1], 1))

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (..., Z) to log_ratio (...)."""
        return self.layers(z).squeeze(-1)


def build_ratio_net(
    latent_dim: int, hidden: Sequence[int] = (200, 200), activation: str = "silu", *, generator: torch.Generator
) -> RatioNet:
    """A `RatioNet` on the CPU whose weights come from `generator` alone; the other arguments are the constructor's."""
    return build(lambda: RatioNet(latent_dim, hidden, activation), generator)


class RatioNets(nn.Module):
    """K ratio networks of the same form, each fed its own latents: (K, N, Z) to (K, N)."""

    def __init__(self, nets: Sequence[RatioNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, z: Tensor) -> Tensor:
        """f_k(z_k) for every k."""
        return torch.stack([net(part) for net, part in zip(self.nets, z, strict=True)])

    def stacked(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this module as the stacked weights (K, ...) of a `density.prior.RatioSequence`."""
        names = self.nets[0].state_dict()
        return {name: torch.stack([weights[f"nets.{k}.{name}"] for k in range(len(self.nets))]) for name in names}
