"""Two layers of latents in coordinates in which the prior's base stays N(0, I).

The layers are z_2 and z_1 = mu(z_2) + sigma(z_2) u_1, as in the generators of Cui & Han (2026). The latent of the model
is u = (u_2, u_1) with z_2 = u_2. So encoder, posterior chains and prior take u as any other latent. The network that
makes images takes both layers. mu starts as 0 and sigma as 1, so two layers start as one.

Shapes: B batch, Z latent, T coordinates of the upper layer z_2.
"""

import torch
from torch import Tensor, nn

from ebmscale.networks.blocks import LEAKY_SLOPE, ZeroLinear, bounded_log_std

HIDDEN = 128
"""Units of the two hidden layers of mu and log sigma."""
BOUND = 2.0
"""log sigma lies within +- this. A wide sigma would make steps of posterior chains unstable."""


class TwoLayers(nn.Module):
    """Maps u = (u_2, u_1) (B, Z) to (z_2, z_1) (B, Z).

    Args:
        latent_dim: Z.
        top: T, of which u_2 are the first coordinates of u.
    """

    def __init__(self, latent_dim: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.layers = nn.Sequential(
            nn.Linear(top, HIDDEN),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Linear(HIDDEN, HIDDEN),
            nn.LeakyReLU(LEAKY_SLOPE),
            ZeroLinear(HIDDEN, 2 * (latent_dim - top)),
        )

    def forward(self, u: Tensor) -> Tensor:
        """Maps u (B, Z) to (z_2, z_1) (B, Z)."""
        upper, lower = u[:, : self.top], u[:, self.top :]
        mean, raw = self.layers(upper).chunk(2, dim=1)
        return torch.cat([upper, mean + bounded_log_std(raw, BOUND).exp() * lower], dim=1)


class TwoLayerGenerator(nn.Module):
    """A generator behind two layers of latents: u (B, Z) to images (B, C, H, W).

    Args:
        two_layers: maps u to (z_2, z_1).
        network: maps these (B, Z) to images.
    """

    def __init__(self, two_layers: TwoLayers, network: nn.Module) -> None:
        super().__init__()
        self.two_layers = two_layers
        self.network = network

    def forward(self, u: Tensor) -> Tensor:
        """Maps u (B, Z) to images (B, C, H, W) in [-1, 1]."""
        images: Tensor = self.network(self.two_layers(u))
        return images
