"""ebmscale: latent-space energy-based priors by adaptive multi-stage density ratio estimation."""

__version__ = "0.1.0"
