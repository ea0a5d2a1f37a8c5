"""A small convolutional classifier. Its penultimate layer gives the features of a Frechet distance.

Shapes: B batch, F features, K classes, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

from ebmscale.networks.architectures import ImageShape
from ebmscale.networks.blocks import build

NUM_FEATURES = 64
SMALLEST_SIDE = 8  # pixels, of the grid that is flattened
GREATEST_WIDTH = 8  # in units of the width of the first layer


class FeatureNet(nn.Module):
    """Classifies images (B, C, H, W) in [-1, 1]. `features` are the inputs of its last layer.

    Args:
        image_shape: (C, H, W).
        num_classes: K.
        width: channels of the first layer. Every halving of the image doubles them, up to `GREATEST_WIDTH` times.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int):
        super().__init__()
        channels, height, width_px = image_shape
        layers: list[nn.Module] = list(_layer(channels, width, stride=1))
        inner, factor = width, 1
        while max(height, width_px) > SMALLEST_SIDE:
            factor = min(2 * factor, GREATEST_WIDTH)
            layers += _layer(inner, width * factor, stride=2)
            inner, height, width_px = width * factor, -(-height // 2), -(-width_px // 2)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.penultimate = nn.Linear(inner * height * width_px, NUM_FEATURES)
        self.output = nn.Linear(NUM_FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, H, W) in [-1, 1]."""
        return nn.functional.silu(self.penultimate(self.body(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [-1, 1]."""
        return self.output(self.features(x))


def _layer(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def build_feature_net(
    image_shape: ImageShape, num_classes: int, width: int, *, generator: torch.Generator
) -> FeatureNet:
    """A `FeatureNet` on the CPU with weights from `generator` alone; the other arguments are the constructor's."""
    network = build(lambda: FeatureNet(image_shape, num_classes, width), generator)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
            layer.reset_running_stats()
    return network
