"""The generator with the batch as the innermost spatial axis, so that a CPU computes no products with padding.

A transposed convolution of small grids spends up to a quarter of its products on padding. With a kernel of 4 and a
stride of 2, 2 of the 16 rows that come from 4 rows lie outside the image, and as many columns. CPU kernels skip such
products along every axis but the innermost one, which they process in blocks. So the batch is the innermost axis here:
features are (1, C, H, W, B), channels last in memory, and a layer is a 3-D convolution whose kernel has length 1 along
B.

A last layer of few channels does not fill a block of output channels. With a kernel of 4 and a stride of 2 it is
computed as one convolution of kernel 2. The outputs of that are the four pixels of each 2x2 window, which are then
rearranged into an image.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmscale.networks import Generator, TwoLayerGenerator
from ebmscale.networks.blocks import LatentToGrid

FEW_CHANNELS = 16
"""A block of bf16 output channels. A layer of fewer channels with kernel 4 and stride 2 is computed by windows."""


class BatchInnerGenerator(nn.Module):
    """The forward pass of a generator, differentiable in z, with weights in a layout of its own.

    It equals the generator within the rounding error of its precision. The images are a view (B, C, H, W). It refers to
    the weights of the generator or holds copies of them: call `load` after they change.

    Args:
        source: the generator whose weights are used; see `supports`.
    """

    def __init__(self, source: nn.Module):
        super().__init__()
        self._two_layers = source.two_layers if isinstance(source, TwoLayerGenerator) else nn.Identity()  # in place
        first, rest = _layers(source)
        self._first, self._rest = _FirstLayer(first), nn.ModuleList(_twins(rest))
        self.requires_grad_(False)

    @staticmethod
    def supports(source: nn.Module) -> bool:
        """Whether every layer of the network has an implementation with the batch as the innermost axis."""
        network = _network(source)
        if not isinstance(network, Generator):
            return False
        first, *rest = network.layers
        return isinstance(first, LatentToGrid) and all(_is_known(layer) for layer in rest)

    @staticmethod
    def num_copied(source: nn.Module) -> int:
        """Elements of weights that are held besides those of the generator.

        With oneDNN a layer holds two copies, for the forward and the backward pass.
        """
        first, rest = _layers(source)
        layers = [layer for layer in rest if isinstance(layer, nn.ConvTranspose2d)]
        return first.weight.numel() + sum((1 if _goes_by_windows(one) else 2) * one.weight.numel() for one in layers)

    @torch.no_grad()
    def load(self, source: nn.Module) -> None:
        """Takes the current weights of a generator with the same layers."""
        first, rest = _layers(source)
        self._first.load(first)
        weighted = [layer for layer in rest if isinstance(layer, nn.ConvTranspose2d)]
        own = [layer for layer in self._rest if isinstance(layer, _Transposed | _Windows)]
        for twin, layer in zip(own, weighted, strict=True):
            twin.load(layer)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (B, Z) to images (B, C, H, W) in [-1, 1]."""
        features = self._first(self._two_layers(z))
        for layer in self._rest:
            features = layer(features)
        return features[0].permute(3, 0, 1, 2)


class _FirstLayer(nn.Module):
    """`LatentToGrid` into (1, C, H, W, B), with the weight's columns in the order (H, W, C)."""

    def __init__(self, layer: LatentToGrid):
        super().__init__()
        self._grid: tuple[int, int, int] = layer.grid_shape
        self.weight = nn.Parameter(torch.empty_like(layer.weight))
        self.bias = nn.Parameter(torch.empty_like(layer.bias))
        self.load(layer)

    @torch.no_grad()
    def load(self, layer: LatentToGrid) -> None:
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
    """A transposed convolution of (1, C, H, W, B) along H and W. With a slope, a LeakyReLU follows."""

    def __init__(self, layer: nn.ConvTranspose2d, slope: float | None):
        super().__init__()
        self._stride, self._padding, self._slope = (*layer.stride, 1), (*layer.padding, 0), slope
        self.load(layer)

    def load(self, layer: nn.ConvTranspose2d) -> None:
        self._weight, self._bias = layer.weight.detach()[..., None], _bias(layer)
        self._blocked: tuple[torch.Size, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if _has_onednn(x):
            return _Fused.apply(x, self._bias, *self._in_blocks(x.shape), self._stride, self._padding, self._slope)
        y = F.conv_transpose3d(x, self._weight, self._bias, self._stride, self._padding)
        return y if self._slope is None else F.leaky_relu(y, self._slope)

    def _in_blocks(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """The weight in the layouts of oneDNN's forward and backward kernels, for an input (1, C, H, W, B).

        Without this, every pass would reorder the weight: 7 % of a pass of 100 rows, 14 % of one of 50.
        """
        if self._blocked is None or self._blocked[0] != shape:
            around = {"padding": self._padding, "stride": self._stride, "dilation": (1, 1, 1), "groups": 1}
            edges = zip(shape[2:], self._stride, self._padding, self._weight.shape[2:], strict=True)
            output = [1, self._weight.shape[1], *((n - 1) * s - 2 * p + k for n, s, p, k in edges)]
            forward = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self._weight, output_padding=(0, 0, 0), input_size=list(shape), **around
            )
            backward = torch.ops.mkldnn._reorder_convolution_weight(self._weight, input_size=output, **around)
            self._blocked = shape, forward, backward
        return self._blocked[1:]


class _Fused(torch.autograd.Function):
    """`_Transposed` by oneDNN's operators, differentiable in x alone. Torch's operator uses them only in bf16."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor, forward: Tensor, backward: Tensor, stride: Any, padding: Any, slope: Any
    ) -> Tensor:
        after = ("none", [], "") if slope is None else ("leaky_relu", [slope], "")
        operator = torch.ops.mkldnn._convolution_transpose_pointwise
        y = operator(x, forward, bias, padding, (0, 0, 0), stride, (1, 1, 1), 1, *after)
        ctx.save_for_backward(y)
        ctx.settings = backward, stride, padding, slope
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        weight, stride, padding, slope = ctx.settings
        if slope is not None:
            gradient = torch.ops.aten.leaky_relu_backward(gradient, y, slope, True)
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        operator = torch.ops.mkldnn._convolution_pointwise
        of_x = operator(gradient, weight, None, padding, stride, (1, 1, 1), 1, "none", [], "")
        return of_x, *[None] * 6


def _has_onednn(x: Tensor) -> bool:
    """Whether oneDNN's operators accept x. For bf16 the processor needs instructions for it."""
    if x.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise"):
        return False
    if x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return x.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()


class _Windows(nn.Module):
    """A transposed convolution of kernel 4, stride 2 and padding 1 of (1, C, H, W, B), by windows of 2x2 pixels.

    Output rows 2p - 1 and 2p (a = 0, 1) come from the input rows p - 1 and p, through the kernel's rows 2 + a and a.
    So window p is a convolution of kernel 2 over the input. The outermost rows of the windows are cut off.
    """

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        weight, bias = _window_weights(layer)
        self.weight, self.bias = _laid_out(weight), nn.Parameter(bias)

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
    return taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)[..., None], _bias(layer).repeat(4)


def _network(source: nn.Module) -> nn.Module:
    """The network that makes images, behind one or two layers of latents."""
    return source.network if isinstance(source, TwoLayerGenerator) else source


def _layers(source: nn.Module) -> tuple[LatentToGrid, list[nn.Module]]:
    network = _network(source)
    if not isinstance(network, Generator):
        raise ValueError(f"batch_inner computes a Generator, not a {type(network).__name__}")
    first, *rest = network.layers
    if not isinstance(first, LatentToGrid):
        raise ValueError("batch_inner needs a generator whose first layer is a LatentToGrid")
    return first, rest


def _bias(layer: nn.ConvTranspose2d) -> Tensor:
    if layer.bias is None:
        raise ValueError("batch_inner needs transposed convolutions with a bias: see `supports`")
    return layer.bias.detach()


def _laid_out(weight: Tensor) -> nn.Parameter:
    """A copy with channels last.

    `contiguous` does not copy a weight if only its last axis, of length 1, has another stride. oneDNN then uses kernels
    that are half as fast.
    """
    laid_out = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last_3d)
    return nn.Parameter(laid_out.copy_(weight.detach()))


def _twins(layers: list[nn.Module]) -> Iterator[nn.Module]:
    """The layers after the first one. A LeakyReLU is merged into the convolution before it where that is possible."""
    taken = False
    for layer, after in pairwise([*layers, nn.Identity()]):
        if taken or not isinstance(layer, nn.ConvTranspose2d):
            if not taken:
                yield layer
            taken = False
        elif _goes_by_windows(layer):
            yield _Windows(layer)
        else:
            taken = isinstance(after, nn.LeakyReLU)
            yield _Transposed(layer, after.negative_slope if isinstance(after, nn.LeakyReLU) else None)


def _goes_by_windows(layer: nn.ConvTranspose2d) -> bool:
    by_twos = (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    return by_twos and layer.out_channels < FEW_CHANNELS and layer.weight.dtype == torch.bfloat16


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.ConvTranspose2d):
        plain = (layer.groups, layer.dilation, layer.output_padding) == (1, (1, 1), (0, 0))
        return plain and layer.bias is not None
    return isinstance(layer, nn.LeakyReLU | nn.Tanh)
