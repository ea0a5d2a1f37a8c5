"""The anomaly scores of images, as a value.

Shapes: B images, Z latent.
"""

from typing import NamedTuple

from torch import Tensor

BACKGROUND_WIDTH = 2.0
"""Width of the background density of `AnomalyScore.ratio`, in standard deviations of p_0."""


class AnomalyScore(NamedTuple):
    """Anomaly scores of images at their posterior latents z, each (B,) in nats. Higher means less likely.

    Attributes:
        joint: -log p(x, z) up to constants, the sum of the next two.
        reconstruction: -log p(x | z) up to a constant, with independent pixels.
        prior: -log p_K(z) up to a constant.
        ratio: log b(z) - log p_K(z) up to constants (likelihood ratio, Ren et al. 2019). The background b is a Gaussian
            `BACKGROUND_WIDTH` times as wide as p_0, or as the Gaussian fitted to the posteriors if the base is fitted.
            Every prior is high near the centre of the latent space. The ratio removes this effect.
        balanced: `prior` plus the energy of the reconstruction error relative to the errors of held-out images (see
            `model.residuals`). It equals `joint` if the model has no residuals.
    """

    joint: Tensor
    reconstruction: Tensor
    prior: Tensor
    ratio: Tensor
    balanced: Tensor
