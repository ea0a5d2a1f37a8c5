"""The standard deviation sigma of p(x | z) = N(x; G(z), sigma^2 I), where a run learns it.

The maximum of the likelihood in sigma is in closed form: sigma^2 is the mean squared residual per pixel. A run keeps an
exponential mean of it over its batches. All ranks take the same reduced numbers, so sigma is the same on all of them.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Sigma = float | Tensor
"""A number, or a tensor () on the device of the chains, which changes in place."""
START = 0.5
"""Before the first batch: about the standard deviation of pixels."""
LEAST = 0.01
"""Below it posterior chains of usual steps diverge. A level of 8 bits has a width of 0.008."""
HALF_LIFE = 2048
"""Of the exponential mean, in samples."""


class NoiseLevel:
    """sigma during training: fixed, or learned.

    Args:
        setting: `model.sigma`.
        device: of the chains.

    Attributes:
        value: sigma. A learned one is a tensor that `observe` changes in place, so that captured graphs read it.
        mean_square: the mean squared residual per pixel; None where sigma is fixed and before the first batch.
    """

    def __init__(self, setting: float | Literal["auto"], device: torch.device):
        self.is_learned = setting == "auto"
        self.value: Sigma = torch.full((), START, device=device) if setting == "auto" else setting
        self.mean_square: float | None = None

    def observe(self, error: float, num_samples: int) -> None:
        """Takes the mean squared residual per pixel of a batch of all ranks; one that is not finite is left out."""
        if not self.is_learned or not math.isfinite(error):
            return
        old = error if self.mean_square is None else self.mean_square
        self.restore(old + (1 - 0.5 ** (num_samples / HALF_LIFE)) * (error - old))

    def restore(self, mean_square: float | None) -> None:
        """Sets the mean squared residual, as a checkpoint has it."""
        if isinstance(self.value, Tensor):
            self.mean_square = mean_square
            self.value.fill_(learned_sigma(mean_square))


def learned_sigma(mean_square: float | None) -> float:
    """sigma for this mean squared residual per pixel; `START` where there is none."""
    return START if mean_square is None else max(math.sqrt(mean_square), LEAST)
