"""How large reconstruction errors are on held-out normal images, so that a score can say what is unusual.

-log N(x; G(z), sigma^2 I) takes pixels for independent and equally noisy. Neither is so: errors sit on edges, so an
image of few edges is reconstructed well whatever it is, and the errors of an image go together, so the term outweighs
the prior many times over. Here the error of an image is divided by the error that its reconstruction leads one to
expect (a mean for every level of grey), and counted as noise in as many dimensions as its spread on normal images
shows.
Only images that training holds out are used, never anomalies.

Shapes: B images, C H W image, L levels of grey.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.world import World

NUM_LEVELS = 32
SMOOTHING = 1e-4  # added to every level's mean squared error


@dataclass(frozen=True)
class Residuals:
    """What was measured on normal images.

    Attributes:
        levels: L mean squared errors of pixels, by the reconstruction's value from -1 to 1.
        mean: of the relative error (squared error over expected) of an image.
        variance: of it, over images.
    """

    levels: tuple[float, ...]
    mean: float
    variance: float

    def __post_init__(self) -> None:
        if len(self.levels) != NUM_LEVELS:
            raise ValueError(f"there are {NUM_LEVELS} levels")

    @property
    def num_dims(self) -> float:
        """n = 2 mean^2 / variance: a sum of n equal squared normal variables has this relative spread."""
        return 2 * self.mean**2 / self.variance

    def expected(self, reconstruction: Tensor) -> Tensor:
        """The squared error (B,) to be expected of images with reconstructions (B, C, H, W)."""
        levels = torch.tensor(self.levels, device=reconstruction.device)
        return levels[_level(reconstruction)].flatten(1).sum(1)

    def energy(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """(n / 2) (relative error / mean), (B,): -log density of a residual in n dimensions, up to a constant."""
        error = (x - reconstruction).square().flatten(1).sum(1)
        return 0.5 * self.num_dims * error / self.expected(reconstruction) / self.mean


def measure_residuals(x: Tensor, reconstruction: Tensor, world: World) -> Residuals:
    """Residuals of this rank's images x (B, C, H, W) and all other ranks' (collective)."""
    squares, level = (x - reconstruction).square().double(), _level(reconstruction)
    totals = squares.new_zeros(2, NUM_LEVELS)
    totals[0].index_add_(0, level.flatten(), squares.flatten())
    totals[1] = torch.bincount(level.flatten(), minlength=NUM_LEVELS)
    totals = world.sum(totals)
    levels = totals[0] / totals[1].clamp(min=1) + SMOOTHING
    relative = squares.flatten(1).sum(1) / levels[level].flatten(1).sum(1)
    moments = world.sum(torch.stack([relative.sum(), relative.square().sum(), relative.new_tensor(float(len(x)))]))
    mean = float(moments[0] / moments[2])
    variance = float(moments[1] / moments[2]) - mean**2
    return Residuals(tuple(levels.tolist()), mean, max(variance, 1e-6 * mean**2))


def _level(reconstruction: Tensor) -> Tensor:
    return ((reconstruction.float().clamp(-1, 1) + 1) * (NUM_LEVELS / 2)).long().clamp(max=NUM_LEVELS - 1)
