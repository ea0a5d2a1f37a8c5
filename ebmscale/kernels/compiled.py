"""The generator compiled for a GPU: bias and activation in one kernel, and a last layer of few channels as a product.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmscale.networks import Generator

FEW_CHANNELS = 16
"""Output channels below which a convolution leaves the tiles of a tensor core empty."""
ALIGNED = 16
"""Columns of a product of matrices come in multiples of this."""


class Columns(nn.Module):
    """A transposed convolution as one product of matrices whose columns are then added up where they overlap.

    Args:
        layer: whose weights are used where they lie.
    """

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives for features x (B, C, H, W), which lie channels-last."""
        layer, number = self.layer, self.layer.weight[0].numel()
        matrix = F.pad(layer.weight.flatten(1), (0, -number % ALIGNED))
        columns = (x.permute(0, 2, 3, 1).flatten(1, 2) @ matrix)[..., :number].transpose(1, 2)
        padding = cast(tuple[int, ...], layer.padding)
        sides = zip(x.shape[2:], layer.kernel_size, layer.stride, padding, strict=True)
        size = tuple((n - 1) * stride - 2 * edge + kernel for n, kernel, stride, edge in sides)
        image = F.fold(columns, size, layer.kernel_size, padding=padding, stride=layer.stride)
        return image if layer.bias is None else image + layer.bias[:, None, None]


def with_columns(source: Generator) -> nn.Sequential:
    """The generator's layers, those of few channels as products; they keep their weights where they are."""
    return nn.Sequential(*map(_on_tiles, source.layers))


def compiled(source: nn.Module) -> nn.Module:
    """A generator that is compiled, in seconds, whenever it is called with another number of rows.

    Of a few numbers; beyond that torch runs it as it is. Compiling it for any number takes half a minute.
    """
    network = with_columns(source) if isinstance(source, Generator) else source
    return cast(nn.Module, torch.compile(network, dynamic=False))


def _on_tiles(layer: nn.Module) -> nn.Module:
    is_narrow = isinstance(layer, nn.ConvTranspose2d) and layer.out_channels < FEW_CHANNELS
    return Columns(layer) if is_narrow else layer  # type: ignore[arg-type]
