"""The Frechet distance between two sets of features, from means and covariances that are accumulated in float64.

d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) is the squared 2-Wasserstein distance of Gaussians with these
moments (Heusel et al. 2017). Shapes: N samples, F features.
"""

import torch
from torch import Tensor

from ebmscale.errors import DataError


class Moments:
    """Mean and covariance of features that are added in parts. It needs memory for one part and for F x F numbers.

    Args:
        num_features: F.

    Attributes:
        count: samples so far.
        mean: (F,) float64.
        scatter: (F, F) float64, the sum of (f - mean)(f - mean)^T.
    """

    def __init__(self, num_features: int):
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    @classmethod
    def of(cls, count: float | Tensor, mean: Tensor, scatter: Tensor) -> "Moments":
        """Moments that were computed before."""
        found = cls(len(mean))
        found.count, found.mean, found.scatter = int(count), mean.double(), scatter.double()
        return found

    def add(self, features: Tensor) -> None:
        """Adds features (N, F)."""
        if not len(features):
            return
        part = features.double()
        mean = part.mean(0)
        centred = part - mean
        self._merge(len(part), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Adds the features that other moments have seen."""
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    def tensors(self) -> dict[str, Tensor]:
        """What `of` takes, by name."""
        count = torch.tensor(float(self.count), dtype=torch.float64)
        return {"count": count, "mean": self.mean, "scatter": self.scatter}

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(F, F), unbiased.

        Raises:
            DataError: there are fewer than two samples.
        """
        if self.count < 2:
            raise DataError(f"A Frechet distance needs at least 2 images on each side, and there are {self.count}.")
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """The (squared) Frechet distance of two sets of features.

    tr (C_1 C_2)^(1/2) is the sum of the square roots of the eigenvalues of C_1^(1/2) C_2 C_1^(1/2). That matrix is
    symmetric and positive semidefinite. So the result is exact for a singular covariance too, such as that of a
    constant feature.
    """
    eigenvalues, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp_min(0).sqrt().sum()
    distance = (first.mean - second.mean).square().sum() + first.covariance.trace() + second.covariance.trace()
    return float(distance - 2 * cross)
