"""The log ratio of the two Gaussians that have the moments of either side: where a stage's quadratic head starts.

Shapes: N samples of q, M samples of p, Z coordinates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ebmscale.density.roots import factor


class Quadratic(NamedTuple):
    """z^T A z + b^T z + c, with A (Z, Z), b (Z,) and c ()."""

    quadratic: Tensor
    linear: Tensor
    constant: Tensor

    def times(self, gain: float) -> "Quadratic":
        """The same, `gain` times as strong."""
        return Quadratic(*(gain * part for part in self))


def gaussian_ratio(q: Tensor, p: Tensor) -> Quadratic:
    """log N(z; moments of q) - log N(z; moments of p) for samples q (N, Z) and p (M, Z), in float64.

    Either covariance is drawn towards the other as if Z of its samples had come from there: few samples then claim
    little, and no direction shrinks or grows by more than a factor of about sqrt(N / Z) at once.

    Raises:
        ValueError: the samples lie in fewer dimensions than they have coordinates.
    """
    (mean_q, raw_q), (mean_p, raw_p) = _moments(q), _moments(p)
    dim = q.shape[1]
    of_q = _logarithm(mean_q, (len(q) * raw_q + dim * raw_p) / (len(q) + dim))
    of_p = _logarithm(mean_p, (len(p) * raw_p + dim * raw_q) / (len(p) + dim))
    return Quadratic(*(a - b for a, b in zip(of_q, of_p, strict=True)))


def _moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (Z,) and covariance (Z, Z)."""
    values = samples.double()
    return values.mean(0), torch.cov(values.T).view(values.shape[1], values.shape[1])


def _logarithm(mean: Tensor, covariance: Tensor) -> Quadratic:
    """The log density of N(mean, covariance), up to the constant that all Gaussians share."""
    cholesky = factor(covariance)
    precision = torch.cholesky_inverse(cholesky)
    linear = precision @ mean
    return Quadratic(-0.5 * precision, linear, -0.5 * mean @ linear - cholesky.diagonal().log().sum())
