"""The generator with the batch as the innermost axis of space, so that a CPU multiplies with no padding.

A transposed convolution of small grids spends up to a quarter of its products on padding: of the 16 rows that a kernel
of 4 and a stride of 2 makes from 4 rows, 2 fall off the edge, and as many of the columns. Kernels skip them along
every axis but the innermost one, which they take in blocks. So the batch is put there: features are (1, C, H, W, B),
channels last in memory, and a layer is a 3-D convolution whose kernel has length 1 along B.

A last layer of few channels fills no block of output channels. Where its kernel is 4 and its stride 2 it is computed
as one convolution of kernel 2 whose outputs are the four pixels of each 2x2 window, laid out afterwards.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmscale.models import Generator
from ebmscale.models.blocks import LatentToGrid

FEW_CHANNELS = 16
"""Output channels below which kernel 4, stride 2 is computed by windows: a block of bf16 output channels."""


class BatchInnerGenerator(nn.Module):
    """A generator's forward pass, differentiable in z, with weights of its own layout.

    Equal to the generator within the rounding of its precision; the images come as a view (B, C, H, W).

    Args:
        source: the generator whose weights are taken; see `supports`.
    """

    def __init__(self, source: nn.Module):
        super().__init__()
        first, *rest = source.layers
        self._first, self._rest = _FirstLayer(first), nn.ModuleList(_twin(layer) for layer in rest)
        self.requires_grad_(False)

    @staticmethod
    def supports(source: nn.Module) -> bool:
        """Whether every layer has a form with the batch inside."""
        if not isinstance(source, Generator):
            return False
        first, *rest = source.layers
        return isinstance(first, LatentToGrid) and all(_is_known(layer) for layer in rest)

    @torch.no_grad()
    def load(self, source: nn.Module) -> None:
        """Takes the present weights of a generator of the same structure."""
        first, *rest = source.layers
        self._first.load(first)
        for own, layer in zip(self._rest, rest, strict=True):
            if isinstance(own, _Transposed | _Windows):
                own.load(layer)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (B, Z) to images (B, C, H, W) in [-1, 1]."""
        features = self._first(z)
        for layer in self._rest:
            features = layer(features)
        return features[0].permute(3, 0, 1, 2)


class _FirstLayer(nn.Module):
    """`LatentToGrid` into (1, C, H, W, B), with the weight's columns in the order (H, W, C)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self._grid: tuple[int, int, int] = layer.grid_shape
        self.weight = nn.Parameter(torch.empty_like(layer.weight))
        self.bias = nn.Parameter(torch.empty_like(layer.bias))
        self.load(layer)

    @torch.no_grad()
    def load(self, layer: nn.Module) -> None:
        channels, height, width = self._grid
        by_channel = layer.weight.view(-1, channels, height * width)
        self.weight.view(-1, height * width, channels).copy_(by_channel.transpose(1, 2))
        self.bias.copy_(layer.bias)

    def forward(self, z: Tensor) -> Tensor:
        channels, height, width = self._grid
        columns = torch.addmm(self.bias.repeat(height * width), z, self.weight)
        rows = columns.view(len(z), height * width, channels).transpose(0, 1).contiguous()
        return rows.view(height, width, len(z), channels).permute(3, 0, 1, 2)[None]


class _Transposed(nn.Module):
    """A transposed convolution of (1, C, H, W, B) along H and W."""

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        self._stride, self._padding = (*layer.stride, 1), (*layer.padding, 0)
        self.weight = nn.Parameter(layer.weight.detach()[..., None].clone(memory_format=torch.contiguous_format))
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last_3d)
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def load(self, layer: nn.ConvTranspose2d) -> None:
        self.weight.copy_(layer.weight[..., None])
        self.bias.copy_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose3d(x, self.weight, self.bias, self._stride, self._padding)


class _Windows(nn.Module):
    """A transposed convolution of kernel 4, stride 2 and padding 1 of (1, C, H, W, B), by windows of 2x2 pixels.

    Output rows 2p - 1 and 2p (a = 0, 1) come from the input rows p - 1 and p, through the kernel's rows 2 + a and a;
    so window p is a convolution of kernel 2 over the input, and the outermost rows of the windows are cut off.
    """

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        weight, bias = _window_weights(layer)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last_3d))
        self.bias = nn.Parameter(bias)

    def load(self, layer: nn.ConvTranspose2d) -> None:
        weight, bias = _window_weights(layer)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.conv3d(x, self.weight, self.bias, padding=(1, 1, 0))[0].permute(1, 2, 3, 0)  # H + 1, W + 1, B, 4C
        rows, columns, batch, _ = windows.shape
        pixels = windows.unflatten(3, (2, 2, -1)).permute(0, 3, 1, 4, 2, 5)
        image = pixels.reshape(2 * rows, 2 * columns, batch, -1)[1:-1, 1:-1]
        return image.permute(3, 0, 1, 2)[None]


@torch.no_grad()
def _window_weights(layer: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Weight (4C', C, 2, 2, 1) and bias (4C',) of the convolution by windows."""
    taps = layer.weight.detach().unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 4)  # C, C', u, a, v, b
    return taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)[..., None], layer.bias.detach().repeat(4)


def _twin(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.ConvTranspose2d):
        return layer
    by_windows = (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    return _Windows(layer) if by_windows and layer.out_channels < FEW_CHANNELS else _Transposed(layer)


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.ConvTranspose2d):
        plain = (layer.groups, layer.dilation, layer.output_padding) == (1, (1, 1), (0, 0))
        return plain and layer.bias is not None
    return isinstance(layer, nn.LeakyReLU | nn.Tanh)
