"""The ratio network that the settings of a fit ask for."""

import math

import torch
from torch import nn

from ebmscale.errors import ConfigError
from ebmscale.machine import total_memory
from ebmscale.networks import ConvRatioNet, vector_ratio
from ebmscale.ratios.settings import FitSettings

BYTES_A_WEIGHT = 16
"""In training: the weight, its gradient and the two moments of Adam, in float32."""


def build_network(shape: tuple[int, ...], settings: FitSettings) -> nn.Module:
    """The network of a stage for points of that shape: convolutions for (C, H, W), else a perceptron."""
    with torch.device("meta"):
        if len(shape) == 3:
            inner: nn.Module = ConvRatioNet((shape[0], shape[1], shape[2]), settings.conv)
        else:
            inner = vector_ratio(
                math.prod(shape),
                settings.hidden,
                settings.activation,
                settings.quadratic,
                settings.waves,
                bounded=bool(settings.hidden),
            )
    needed, there = sum(BYTES_A_WEIGHT * weight.numel() for weight in inner.parameters()), total_memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"The network of the ratio needs {needed / 1e9:,.1f} GB of memory, and this machine has {there / 1e9:,.1f} "
            "GB; lower hidden, waves or conv."
        )
    return inner.to_empty(device="cpu")
