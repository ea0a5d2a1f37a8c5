"""Latents that are given as data, as a pair of an encoder and a generator that have nothing to learn.

Each coordinate is standardised by its mean and standard deviation, and brought back where latents leave the model.
Shapes: B batch, S the shape of a latent, Z its number of coordinates.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standard(nn.Module):
    """`shift` and `scale` (Z,): mean and standard deviation of every coordinate of given latents, as buffers."""

    shift: Tensor
    scale: Tensor

    def __init__(self, latent_shape: Sequence[int]):
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self.register_buffer("shift", torch.zeros(math.prod(latent_shape)))
        self.register_buffer("scale", torch.ones(math.prod(latent_shape)))


class GivenEncoder(Standard):
    """Given latents as Gaussian posteriors of standardised latents."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std (B, Z).

        Args:
            x: points (B, *S), which have the standard deviation 0; or means and standard deviations (B, 2, *S).
        """
        if tuple(x.shape[1:]) == self.latent_shape:
            mean = (x.flatten(1) - self.shift) / self.scale
            return mean, torch.full_like(mean, -math.inf)
        mean, std = x.flatten(2).unbind(1)
        return (mean - self.shift) / self.scale, (std / self.scale).log()


class GivenGenerator(Standard):
    """Standardised latents in the coordinates of the given ones."""

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (B, Z) to (B, *S)."""
        return (self.shift + self.scale * z).unflatten(1, self.latent_shape)
