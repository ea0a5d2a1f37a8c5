"""Measures of a model of given latents: its density of held-out ones, which is known, and latents as features.

Shapes: B latents of a chunk, N latents, Z coordinates.
"""

import hashlib
import math

import torch

from ebmscale.evaluate.features import Features
from ebmscale.evaluate.images import ImageSet, chunk_seed
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.normaliser import measure_normaliser
from ebmscale.model.pixels import to_pixels
from ebmscale.networks import GivenGenerator

NAME = "FD-latents"


def measure_density(model: LatentModel, images: ImageSet, seed: int) -> dict[str, float]:
    """The mean log density of latents in nats, normalised, with its standard error over latents (collective).

    Posteriors are drawn from, once each. `log_likelihood_base` is that of p_0. The error of log Z is common to all
    latents, and stands apart.
    """
    world = images.world
    normaliser = world.broadcast(measure_normaliser(model.prior, seed) if world.is_first else None)
    base, generator = model.at_stage(0), model.networks.generator
    assert isinstance(generator, GivenGenerator)
    log_scale = float(generator.scale.double().log().sum())
    sums = torch.zeros(4, dtype=torch.float64)  # latents, log p_K, its square, log p_0
    for chunk in images.chunks():
        z = model.encode(to_pixels(chunk.images), chunk_seed(seed, chunk.index))
        values = model.log_prior(z, normaliser).double() - log_scale
        of_base = base.log_prior(z).double() - log_scale
        sums += torch.stack([torch.tensor(float(len(z))), values.sum(), values.square().sum(), of_base.sum()])
    count, total, squares, of_base_sum = world.sum(sums).tolist()
    mean = total / count
    return {
        "log_likelihood": mean,
        "log_likelihood_error": math.sqrt(max(squares / count - mean**2, 0.0) / count),
        "log_likelihood_base": of_base_sum / count,
        "log_z": normaliser.log_z,
        "log_z_error": normaliser.error,
    }


def latent_features(model: LatentModel) -> Features:
    """Standardised latents (B, Z) as their own features."""
    return Features(NAME, model.prior.base.dim, hashlib.sha256(NAME.encode()).hexdigest(), None, lambda z: z)
