"""Whether the prior fits the posteriors: mean log densities under every p_k, mixing of its chains, and log Z.

Shapes: N latents, Z latent, K stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.evaluate.images import ImageSet, Progress, chunk_seed
from ebmscale.evaluate.measure import ROW, Tensors, in_order, rows_of, stacked
from ebmscale.evaluate.sampling import chain_diagnostics
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.normaliser import measure_normaliser
from ebmscale.model.pixels import to_pixels
from ebmscale.model.posterior import langevin_settings
from ebmscale.model.sampler import agreement, draw_density
from ebmscale.seeds import derive

NUM_GROUPS, GROUP_SIZE = 8, 256  # of the particles that estimate log Z
MOST_WIDTH = 40.0  # nats; above this width log Z is not estimated here


def fit_prior(
    model: LatentModel, posteriors: Tensor, seed: int, progress: Progress = lambda done, total, unit: None
) -> dict[str, float]:
    """Compares posterior latents (N, Z) of held-out images with as many samples of every p_k.

    Returns:
        `gap_pK` and `gap_pK_error` for every k: mean log density of the posteriors minus that of the samples, in nats,
        with its standard error. If the prior has stages, the result also has `width`: the standard deviation of each
        stage's log ratio at samples of the stage before, summed over the stages. If the width is at most `MOST_WIDTH`,
        it also has `log_z`, `log_z_error` and `log_z_bridge` (see `Normaliser`). Samples are drawn as
        `LatentModel.sample_prior` draws them up to this width. Beyond it they are drawn by chains, because other
        methods take long. If the samples of the last stage come from chains, the result also has `r_hat`,
        `r_hat_steps`, `drift` and `drift_error` (see `chain_diagnostics`).
    """
    model, values, z = model.to("cpu"), {}, torch.empty(0)
    width, by_chains = 0.0, not model.config.uses_density
    for stage in range(model.prior.num_stages + 1):
        progress(stage, model.prior.num_stages, "stages of the prior")
        earlier = model.at_stage(stage)
        if stage:
            width += float(earlier.prior.log_ratios(z)[-1].std())
        by_chains = not model.config.uses_density or not width <= MOST_WIDTH
        z, unique = _samples(earlier, len(posteriors), seed, by_chains)
        found = agreement(earlier.prior, z, posteriors, unique)
        values[f"gap_p{stage}"], values[f"gap_p{stage}_error"] = -found.difference, found.error
    if not model.prior.num_stages:
        return values
    if by_chains:
        values |= _of_chains(model, z, seed)
    values["width"] = width
    if not width <= MOST_WIDTH:  # the estimate would take long; NaN counts as too wide
        return values
    log_z = measure_normaliser(model.prior, seed, num_groups=NUM_GROUPS, group_size=GROUP_SIZE)
    return values | {"log_z": log_z.log_z, "log_z_error": log_z.error, "log_z_bridge": log_z.bridge}


def _samples(model: LatentModel, num: int, seed: int, by_chains: bool) -> tuple[Tensor, float]:
    """Samples (N, Z) of the prior by chains or by the sampler of its density, and the share of distinct ones."""
    if by_chains:
        return model.sample_chains(num, seed)[0], 1.0
    drawn = draw_density(model.prior, num, seed)
    return drawn.z, drawn.unique


def _of_chains(model: LatentModel, z: Tensor, seed: int) -> dict[str, float]:
    """Diagnostics of chains that start at z (N, Z); empty if they cannot be computed."""
    settings = langevin_settings(model.config.prior, model.config.prior.sample_steps)
    chains = chain_diagnostics(model.prior, z, settings, seed)
    if "largest R-hat" not in chains:
        return {}
    return {
        "r_hat": chains["largest R-hat"],
        "r_hat_steps": chains["steps"],
        "drift": chains["drift of the log density (standard deviations)"],
        "drift_error": chains["drift's standard error"],
    }


@dataclass(frozen=True)
class PriorFit:
    """`fit_prior` of the posteriors of a set of images; a `measure.Measure`."""

    model: LatentModel
    seed: int

    def part(self, images: ImageSet) -> Tensors:
        """The latents (N, Z) of images."""
        return stacked([
            {ROW: rows_of(chunk), "z": self.model.infer(to_pixels(chunk.images), chunk_seed(self.seed, chunk.index))[0]}
            for chunk in images.chunks()
        ])  # fmt: skip

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """Rank 0 compares the latents with samples."""
        found: dict[str, float] = {}
        if images.world.is_first:
            found = fit_prior(self.model, in_order(parts, "z"), derive(self.seed, "prior-fit"), images.progress)
        return images.world.broadcast(found)
