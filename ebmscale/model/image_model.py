"""Generator and encoder as one module.

Shapes: B batch, Z latent, C H W image.
"""

from torch import Tensor, nn


class ImageModel(nn.Module):
    """The generator and the optional encoder as one module, which the engine of the generator trains.

    Args:
        generator: z (B, Z) -> mean image (B, C, H, W).
        encoder: image -> (mean (B, Z), log_std (B, Z)), or None.
    """

    def __init__(self, generator: nn.Module, encoder: nn.Module | None):
        super().__init__()
        self.generator = generator
        self.encoder = encoder

    def forward(
        self, z: Tensor, x: Tensor, start_noise: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Mean images at z (B, Z), and the encoder's mean and log_std (B, Z) for images x (B, C, H, W).

        With `start_noise` (B, Z) the latents are mean + std * start_noise of the encoder, and `z` is not used. So the
        gradient of a loss on the images reaches the encoder (reparameterisation, Kingma & Welling 2014).
        """
        encoded = self.encoder(x) if self.encoder is not None else None
        if encoded is not None and start_noise is not None:
            z = encoded[0] + encoded[1].exp() * start_noise
        return self.generator(z), encoded
