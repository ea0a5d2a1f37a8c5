"""Sums of quadratic ratios are quadratic: K stages that cost what one costs.

Shapes: N points, Z latent, K stages.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ebmscale.density.prior import RatioSequence
from ebmscale.networks import QuadraticHead, Standardised


class Quadratics(NamedTuple):
    """The quadratics gain_k (u_k^T A_k u_k + b_k^T u_k + c_k) of all stages at u_k = (z - shift_k) / scale_k.

    Attributes:
        matrices: (K, Z, Z), A_k.
        linear: (K, Z).
        constants: (K,).
        shifts: (K, Z).
        scales: (K, Z).
        gains: (K,).
    """

    matrices: Tensor
    linear: Tensor
    constants: Tensor
    shifts: Tensor
    scales: Tensor
    gains: Tensor

    @classmethod
    def of(cls, sequence: RatioSequence, head: str) -> "Quadratics":
        """Those of a sequence of `networks.Standardised` whose quadratic heads have this prefix of their names."""
        weights, gains, factors = sequence.weights, sequence.weights["gain"], sequence.factors
        return cls(
            weights[f"{head}quadratic.weight"].mT,
            weights[f"{head}linear.weight"][:, 0],
            weights[f"{head}linear.bias"][:, 0],
            weights["shift"],
            weights["scale"],
            gains if factors is None else gains * factors.to(gains),
        )

    def merged(self) -> "Quadratics":
        """One quadratic that is their sum.

        The coefficients are added in float64, in the coordinates of the last stage: those of an earlier stage may be so
        much wider that its quadratic is all rounding error where the last prior lies.
        """
        matrices, linear, constants, shifts, scales, gains = (one.double() for one in self)
        stretch, offset = scales[-1] / scales, (shifts[-1] - shifts) / scales  # u_k = stretch * u_K + offset
        matrix = (gains[:, None, None] * stretch[:, :, None] * matrices * stretch[:, None]).sum(0)
        both = ((matrices + matrices.mT) @ offset[:, :, None])[:, :, 0]
        slope = (gains[:, None] * stretch * (both + linear)).sum(0)
        at_offset = ((offset[:, None] @ matrices)[:, 0] * offset).sum(1) + (linear * offset).sum(1) + constants
        found = (matrix[None], slope[None], (gains * at_offset).sum()[None], shifts[-1:], scales[-1:])
        return Quadratics(*(one.to(self.matrices.dtype) for one in (*found, torch.ones_like(gains[-1:]))))

    def stages(self, first: int, last: int) -> "Quadratics":
        """Those of the stages first + 1, ..., last."""
        return Quadratics(*(one[first:last] for one in self))

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Values (K, N) and gradients (K, N, Z) at z (N, Z)."""
        u = (z - self.shifts[:, None]) / self.scales[:, None]
        half = u @ self.matrices
        value = (half * u).sum(2) + (u @ self.linear[:, :, None])[:, :, 0] + self.constants[:, None]
        gradient = (half + u @ self.matrices.mT + self.linear[:, None]) / self.scales[:, None]
        return self.gains[:, None] * value, self.gains[:, None, None] * gradient


def merged(sequence: RatioSequence) -> RatioSequence:
    """The same density with one ratio, where every ratio is a quadratic head alone; else the sequence itself."""
    network = sequence.network
    only_quadratic = isinstance(network, Standardised) and isinstance(network.inner, QuadraticHead)
    if sequence.num_stages < 2 or not only_quadratic:
        return sequence
    one = Quadratics.of(sequence, "inner.").merged()
    weights = {
        "gain": one.gains[0],
        "shift": one.shifts[0],
        "scale": one.scales[0],
        "inner.quadratic.weight": one.matrices[0].mT,
        "inner.linear.weight": one.linear,
        "inner.linear.bias": one.constants,
    }
    return sequence.prefix(0).append(weights, sequence.base_power)
