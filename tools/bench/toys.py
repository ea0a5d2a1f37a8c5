"""Four densities in the plane that are known in closed form, for `density.py`.

Shapes: M centres, N samples.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Toy(NamedTuple):
    """A density in the plane as a mixture: centres (M, 2), and what is added to a centre for a sample.

    Attributes:
        centres: of equal weight.
        sd: of the Gaussian around each; None for squares of side 1.
    """

    centres: Tensor
    sd: float | None

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Exact samples (N, 2)."""
        centres = self.centres[torch.randint(len(self.centres), (num,), generator=generator)].float()
        if self.sd is None:
            return centres + torch.rand(num, 2, generator=generator) - 0.5
        return centres + self.sd * torch.randn(num, 2, generator=generator)

    def log_density(self, z: Tensor) -> Tensor:
        """Normalised, at z (N, 2), as (N,)."""
        offsets = z[:, None] - self.centres
        if self.sd is None:
            inside = (offsets.abs().amax(2) < 0.5).any(1)
            return torch.where(inside, -math.log(len(self.centres)), -math.inf)
        exponent = -0.5 * offsets.square().sum(2) / self.sd**2
        return exponent.logsumexp(1) - math.log(len(self.centres) * 2 * math.pi * self.sd**2)


def toys() -> dict[str, Toy]:
    """Eight Gaussians on a ring, two spirals, a checkerboard, and 25 Gaussians on a grid."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    turn = torch.linspace(0.5 * math.pi, 3.0 * math.pi, 150, dtype=torch.float64)
    arm = (turn / (1.2 * math.pi))[:, None] * torch.stack([turn.cos(), turn.sin()], 1)
    axis = torch.arange(4, dtype=torch.float64) - 1.5
    squares = torch.cartesian_prod(axis, axis)
    lattice = torch.arange(5, dtype=torch.float64) - 2
    return {
        "ring": Toy(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.1),
        "spirals": Toy(torch.cat([arm, -arm]), 0.1),
        "checkerboard": Toy(squares[squares.sum(1).long() % 2 == 0], None),
        "25 Gaussians": Toy(torch.cartesian_prod(lattice, lattice), 0.1),
    }
