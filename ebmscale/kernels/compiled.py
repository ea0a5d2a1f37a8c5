"""The generator compiled for a GPU. Bias and activation are one kernel; a layer of few channels is a matrix product.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmscale.networks import Generator, TwoLayerGenerator

FEW_CHANNELS = 16
"""A convolution with fewer output channels does not fill the tiles of a tensor core."""
ALIGNED = 16
"""The number of columns of a matrix product is padded to a multiple of this."""


class TransposedAsProduct(nn.Module):
    """A transposed convolution as one matrix product (col2im): overlapping columns of the product are added up.

    Args:
        layer: the layer. Its weights are used in place.
    """

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The output of the layer for features x (B, C, H, W), channels last in memory."""
        layer, number = self.layer, self.layer.weight[0].numel()
        matrix = F.pad(layer.weight.flatten(1), (0, -number % ALIGNED))
        columns = (x.permute(0, 2, 3, 1).flatten(1, 2) @ matrix)[..., :number].transpose(1, 2)
        padding = cast(tuple[int, ...], layer.padding)
        sides = zip(x.shape[2:], layer.kernel_size, layer.stride, padding, strict=True)
        size = tuple((n - 1) * stride - 2 * edge + kernel for n, kernel, stride, edge in sides)
        image = F.fold(columns, size, layer.kernel_size, padding=padding, stride=layer.stride)
        return image if layer.bias is None else image + layer.bias[:, None, None]


def with_products(source: Generator) -> nn.Sequential:
    """The layers of the generator, with those of few channels as products. They use the same weights in place."""
    return nn.Sequential(*map(_on_tiles, source.layers))


def compiled(source: nn.Module) -> nn.Module:
    """A compiled generator. Every new number of rows compiles it again, which takes seconds.

    After a few numbers of rows torch runs further ones without compilation. Compilation for any number of rows would
    take half a minute.
    """
    return cast(nn.Module, torch.compile(_faster(source), dynamic=False))


def _faster(source: nn.Module) -> nn.Module:
    if isinstance(source, TwoLayerGenerator):
        return TwoLayerGenerator(source.two_layers, _faster(source.network))
    return with_products(source) if isinstance(source, Generator) else source


def _on_tiles(layer: nn.Module) -> nn.Module:
    is_narrow = isinstance(layer, nn.ConvTranspose2d) and layer.out_channels < FEW_CHANNELS
    return TransposedAsProduct(layer) if is_narrow else layer  # type: ignore[arg-type]
