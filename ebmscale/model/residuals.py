"""Statistics of reconstruction errors on held-out normal images, for the `balanced` anomaly score.

-log N(x; G(z), sigma^2 I) assumes that pixels are independent and equally noisy. Neither is true. Errors lie on edges,
so every image with few edges is reconstructed well. The errors of the pixels of an image are correlated, so the term is
many times larger than the term of the prior. Here the squared error of an image is divided by its expected value, given
the reconstruction (a mean for every level of grey). The result counts as noise in n dimensions; n follows from its
variance over normal images. Only images that training holds out are used, never anomalies.

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
    """Statistics of reconstruction errors on normal images.

    Attributes:
        levels: L mean squared errors of pixels, by the level of the reconstruction from -1 to 1.
        mean: mean over images of the relative error, which is the squared error divided by its expected value.
        variance: variance over images of the relative error.
    """

    levels: tuple[float, ...]
    mean: float
    variance: float

    def __post_init__(self) -> None:
        if len(self.levels) != NUM_LEVELS:
            raise ValueError(f"there are {NUM_LEVELS} levels")

    @property
    def num_dims(self) -> float:
        """n = 2 mean^2 / variance: the degrees of freedom of a chi-squared variable with this relative variance."""
        return 2 * self.mean**2 / self.variance

    def expected(self, reconstruction: Tensor) -> Tensor:
        """The expected squared error (B,) of images with reconstructions (B, C, H, W)."""
        levels = torch.tensor(self.levels, device=reconstruction.device)
        return levels[_level(reconstruction)].flatten(1).sum(1)

    def energy(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """(n / 2) (relative error / mean) (B,) in nats, for x and reconstruction (B, C, H, W).

        It is -log of a normal density in n dimensions at the residual, up to a constant.
        """
        error = (x - reconstruction).square().flatten(1).sum(1)
        return 0.5 * self.num_dims * error / self.expected(reconstruction) / self.mean


def measure_residuals(x: Tensor, reconstruction: Tensor, world: World) -> Residuals:
    """The statistics over the images of all ranks; x and reconstruction (B, C, H, W) are this rank's (collective)."""
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
