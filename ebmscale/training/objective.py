"""The training loss of generator and encoder.

Shapes: B batch, Z latent, C H W image. Pixels are in [-1, 1].
"""

from torch import Tensor

from ebmscale.model.posterior import PosteriorSample, log_likelihood


def generator_loss(
    x: Tensor, mean: Tensor, sigma: float, encoded: tuple[Tensor, Tensor] | None, sample: "PosteriorSample"
) -> tuple[Tensor, Tensor]:
    """The loss of every image (B,), and its squared error per pixel (B,).

    The generator minimises -log p(x | z) at posterior latents z. The encoder maximises the evidence lower bound
    under the current prior, E_q[log p(x, z)] + H(q): the score of log p(x, z) at the encoder's own draw z_0 was
    already computed when the posterior chain started there, so by the chain rule the bound's gradient needs no
    further pass through the generator and none through the prior. Without a chain the images were made at the draw
    itself (see `ImageModel.forward`), so their likelihood's gradient reaches the encoder, and the score is the prior's.

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
