"""Encoder and decoder of a small AutoencoderKL of `diffusers`, as the networks of a run. Latents are maps (4, 8, 8)."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn


def autoencoder() -> AutoencoderKL:
    """An autoencoder of 32x32 images with 0.24 million weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
    )


class Encoder(nn.Module):
    """Images (B, 3, 32, 32) in [-1, 1] to mean and log_std, (B, 4, 8, 8) each."""

    def __init__(self) -> None:
        super().__init__()
        whole = autoencoder()
        self.encoder, self.output = whole.encoder, whole.quant_conv

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std of images x."""
        mean, log_variance = self.output(self.encoder(x)).chunk(2, dim=1)
        return mean, 0.5 * log_variance.clamp(-30, 20)


class Decoder(nn.Module):
    """Latents (B, 4, 8, 8) to images (B, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        whole = autoencoder()
        self.input, self.decoder = whole.post_quant_conv, whole.decoder

    def forward(self, z: Tensor) -> Tensor:
        """Images at latents z."""
        return torch.tanh(self.decoder(self.input(z)))
