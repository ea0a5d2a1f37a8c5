"""The training loss of generator and encoder.

Shapes: B batch, Z latent, C H W image. Pixels are in [-1, 1].
"""

from torch import Tensor

from ebmscale.model.noise_level import Sigma
from ebmscale.model.posterior import PosteriorSample, log_likelihood


def generator_loss(
    x: Tensor, mean: Tensor, sigma: Sigma, encoded: tuple[Tensor, Tensor] | None, sample: "PosteriorSample"
) -> tuple[Tensor, Tensor]:
    """The loss of every image (B,), and its squared error per pixel (B,).

    The generator minimises -log p(x | z) at posterior latents z. The encoder maximises the evidence lower bound
    under the current prior, E_q[log p(x, z)] + H(q). The posterior chain starts at the encoder's own draw z_0, and has
    computed the score of log p(x, z) there. So by the chain rule the gradient of the bound needs no further pass
    through generator and prior. If there is no chain, the images are those of the draw itself (see
    `ImageModel.forward`). Then the gradient of their likelihood reaches the encoder, and the score is that of the prior
    alone.

    Args:
        x: (B, C, H, W) images.
        mean: (B, C, H, W) the generator's images at `sample.z`.
        sigma: standard deviation of p(x | z).
        encoded: the encoder's mean and log_std (B, Z), or None.
        sample: the posterior sample of these images.
    """
    likelihood = log_likelihood(x, mean, sigma)
    squared_error = likelihood.detach() * (-2 * sigma**2 / x[0].numel())
    if encoded is None or sample.start_noise is None or sample.start_score is None:
        return -likelihood, squared_error
    location, log_std = encoded
    draw = location + log_std.exp() * sample.start_noise
    return -likelihood - (sample.start_score * draw).sum(1) - log_std.sum(1), squared_error
