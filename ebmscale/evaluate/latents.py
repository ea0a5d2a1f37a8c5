"""The mean log density of posterior latents of held-out images under the normalised prior: how well the prior fits.

The numbers of two runs are comparable if generator and encoder are the same. Shapes: N latents, Z latent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ebmscale.errors import DivergenceError
from ebmscale.evaluate.images import ImageSet, chunk_seed
from ebmscale.evaluate.measure import ROW, Tensors, in_order, rows_of, stacked
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.normaliser import measure_normaliser
from ebmscale.model.pixels import to_pixels

NUM_GROUPS, GROUP_SIZE = 16, 256  # of the particles that estimate log Z


def latent_densities(model: LatentModel, images: ImageSet, seed: int) -> Tensors:
    """Log densities (N,) of a posterior draw of every image: `last` under p_K up to log Z_K, and `base` under p_0."""
    base, rows = model.at_stage(0), []
    for chunk in images.chunks():
        z = model.encode(to_pixels(chunk.images), chunk_seed(seed, chunk.index))
        rows.append({ROW: rows_of(chunk), "last": model.log_prior(z).double(), "base": base.log_prior(z).double()})
    return stacked(rows)


@dataclass(frozen=True)
class LatentDensity:
    """`nats` of latents of images, with those under p_0 and log Z; a `measure.Measure`. The model is on the CPU.

    `nats_error` is the standard error over images. The error of log Z is common to all of them, and stands apart.
    """

    model: LatentModel
    seed: int

    def part(self, images: ImageSet) -> Tensors:
        """See `latent_densities`."""
        return latent_densities(self.model, images, self.seed)

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """The means over all images. `nats` is NaN if the prior has diverged, or is too far from p_0 to normalise."""
        last, base = in_order(parts, "last"), in_order(parts, "base")
        values = {"nats_base": float(base.mean())}
        if not bool(last.isfinite().all()):
            return {"nats": math.nan} | values
        try:
            normaliser = measure_normaliser(self.model.prior, self.seed, num_groups=NUM_GROUPS, group_size=GROUP_SIZE)
        except DivergenceError:  # the walk from p_0 has no end
            return {"nats": math.nan} | values
        return {
            "nats": float(last.mean()) - normaliser.log_z,
            "nats_error": float(last.std()) / math.sqrt(len(last)),
            **values,
            "log_z": normaliser.log_z,
            "log_z_error": normaliser.error,
        }
