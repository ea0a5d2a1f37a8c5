"""LEBM's training loop (Pang et al. 2020) in plain PyTorch and fp32, as a baseline.

The generator has transposed convolutions, and the energy E is a perceptron; the prior is p(z) ~ exp(-E(z)) N(z; 0, I).
Every batch runs short chains from p_0 for the prior and for the posterior, then updates both networks.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmscale.networks import initialise
from ebmscale.networks.architectures import ImageShape, find_architecture
from ebmscale.networks.blocks import ImageLayer
from ebmscale.seeds import torch_generator

SLOPE = 0.2


class Setting(NamedTuple):
    """The settings of the loop."""

    image_shape: ImageShape
    form: str | None
    latent_dim: int
    width: int
    sigma: float
    hidden: tuple[int, ...]
    posterior_steps: int
    posterior_size: float
    prior_steps: int
    prior_size: float
    generator_rate: float
    energy_rate: float


class Decoder(nn.Module):
    """Latents (B, Z) to images (B, C, H, W); the latent is a 1x1 image, as in LEBM's code."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        channels_in, layers = setting.latent_dim, list[nn.Module]()
        for layer in find_architecture(setting.image_shape, setting.form).layers:
            channels = layer.channels(setting.width, setting.image_shape[0])
            up = (
                nn.ConvTranspose2d if layer.multiple else ImageLayer
            )  # a transposed convolution with small initial weights
            layers += [up(channels_in, channels, layer.kernel, layer.stride, layer.padding), nn.LeakyReLU(SLOPE)]
            channels_in = channels
        self.layers = nn.Sequential(*layers[:-1], nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Images of latents z (B, Z)."""
        return self.layers(z[:, :, None, None])


class Energy(nn.Module):
    """E(z) (B,) of latents z (B, Z)."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        size_in, layers = setting.latent_dim, list[nn.Module]()
        for size in setting.hidden:
            layers += [nn.Linear(size_in, size), nn.LeakyReLU(SLOPE)]
            size_in = size
        self.layers = nn.Sequential(*layers, nn.Linear(size_in, 1))

    def forward(self, z: Tensor) -> Tensor:
        """The energy of latents z (B, Z)."""
        return self.layers(z).squeeze(1)


class LebmLoop:
    """Both networks, their optimisers, and the update on one batch."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.setting = setting
        self.generator, self.energy = Decoder(setting), Energy(setting)
        initialise(self.generator, torch_generator(seed, "generator"))
        initialise(self.energy, torch_generator(seed, "energy"))
        self.adam_g = torch.optim.Adam(self.generator.parameters(), setting.generator_rate, (0.5, 0.999))
        self.adam_e = torch.optim.Adam(self.energy.parameters(), setting.energy_rate, (0.5, 0.999))

    def update(self, x: Tensor) -> None:
        """One update on images x (B, C, H, W)."""
        setting = self.setting
        z_prior = self._prior_chain(torch.randn(len(x), setting.latent_dim))
        z_posterior = self._posterior_chain(torch.randn(len(x), setting.latent_dim), x)
        self.adam_g.zero_grad()
        loss = F.mse_loss(self.generator(z_posterior), x, reduction="sum") / (2 * setting.sigma**2 * len(x))
        loss.backward()
        self.adam_g.step()
        self.adam_e.zero_grad()
        (self.energy(z_posterior).mean() - self.energy(z_prior).mean()).backward()
        self.adam_e.step()

    def _prior_chain(self, z: Tensor) -> Tensor:
        size = self.setting.prior_size
        for _ in range(self.setting.prior_steps):
            z = z.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.energy(z).sum(), z)
            z = z - 0.5 * size**2 * (gradient + z) + size * torch.randn_like(z)
        return z.detach()

    def _posterior_chain(self, z: Tensor, x: Tensor) -> Tensor:
        size = self.setting.posterior_size
        for _ in range(self.setting.posterior_steps):
            z = z.detach().requires_grad_(True)
            error = F.mse_loss(self.generator(z), x, reduction="sum") / (2 * self.setting.sigma**2)
            (of_likelihood,) = torch.autograd.grad(error, z)
            (of_energy,) = torch.autograd.grad(self.energy(z).sum(), z)
            z = z - 0.5 * size**2 * (of_likelihood + of_energy + z) + size * torch.randn_like(z)
        return z.detach()
