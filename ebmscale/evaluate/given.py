"""Measures of a model of given latents: its density of held-out ones, which is known, and latents as features.

Shapes: N latents, Z coordinates.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ebmscale.evaluate.features import Features
from ebmscale.evaluate.images import ImageSet
from ebmscale.evaluate.latents import latent_densities
from ebmscale.evaluate.measure import Tensors, in_order
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.normaliser import measure_normaliser
from ebmscale.networks import GivenGenerator

NAME = "FD-latents"


@dataclass(frozen=True)
class MeanDensity:
    """The mean log density of latents in nats, normalised; a `measure.Measure`. The model is on the CPU.

    Posteriors are drawn from, once each. `log_likelihood_base` is that of p_0. `log_likelihood_error` is the standard
    error over latents. The error of log Z is common to all latents, and stands apart.
    """

    model: LatentModel
    seed: int

    def part(self, images: ImageSet) -> Tensors:
        """Log density (N,) of latents up to log Z, and that under p_0."""
        return latent_densities(self.model, images, self.seed)

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """The means over all latents."""
        generator = self.model.networks.generator
        assert isinstance(generator, GivenGenerator)
        log_scale = float(generator.scale.double().log().sum())
        normaliser = measure_normaliser(self.model.prior, self.seed)
        last = in_order(parts, "last") - normaliser.log_z - log_scale
        return {
            "log_likelihood": float(last.mean()),
            "log_likelihood_error": float(last.std()) / math.sqrt(len(last)),
            "log_likelihood_base": float(in_order(parts, "base").mean()) - log_scale,
            "log_z": normaliser.log_z,
            "log_z_error": normaliser.error,
        }


def latent_features(model: LatentModel) -> Features:
    """Standardised latents (B, Z) as their own features."""
    return Features(NAME, model.prior.base.dim, hashlib.sha256(NAME.encode()).hexdigest(), None, lambda z: z)
