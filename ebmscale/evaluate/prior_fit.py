"""Whether the prior fits the posteriors: mean log densities under every p_k, mixing of its chains, and log Z.

Shapes: N latents, Z latent, K stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class StageSamples:
    """Samples of p_k.

    Attributes:
        z: (N, Z).
        unique: share of different ones.
        width: sum of the standard deviations of the log ratios up to stage k, each at samples of the stage before.
        by_chains: whether they are the ends of Langevin chains.
    """

    z: Tensor
    unique: float
    width: float
    by_chains: bool


def samples_of_stages(
    model: LatentModel, num: int, seed: int, progress: Progress = lambda done, total, unit: None
) -> list[StageSamples]:
    """N = `num` samples of p_0, ..., p_K.

    They are drawn as `LatentModel.sample_prior` draws them, but beyond a width of `MOST_WIDTH` always by chains, as
    particles take long there.
    """
    model, found, width = model.to("cpu"), list[StageSamples](), 0.0
    for stage in range(model.prior.num_stages + 1):
        progress(stage, model.prior.num_stages, "stages of the prior")
        earlier = model.at_stage(stage)
        if stage:
            width += float(earlier.prior.log_ratios(found[-1].z)[-1].std())
        by_chains = not model.config.uses_density or not width <= MOST_WIDTH
        found.append(StageSamples(*_samples(earlier, num, seed, by_chains), width, by_chains))
    return found


def fit_prior(model: LatentModel, posteriors: Tensor, drawn: Sequence[StageSamples], seed: int) -> dict[str, float]:
    """Compares posterior latents (N, Z) of held-out images with samples of every p_k.

    Args:
        model: of p_K.
        posteriors: of held-out images.
        drawn: see `samples_of_stages`.
        seed: of what else is random.

    Returns:
        `gap_pK` and `gap_pK_error` for every k: mean log density of the posteriors minus that of the samples, in nats,
        with its standard error. With stages also `width` (see `StageSamples`); and, up to a width of `MOST_WIDTH`,
        `log_z`, `log_z_error` and `log_z_bridge` (see `Normaliser`). Of chains there are `r_hat`, `r_hat_steps`,
        `drift` and `drift_error` too (see `chain_diagnostics`).
    """
    model, values = model.to("cpu"), {}
    for stage, samples in enumerate(drawn):
        found = agreement(model.at_stage(stage).prior, samples.z, posteriors, samples.unique)
        values[f"gap_p{stage}"], values[f"gap_p{stage}_error"] = -found.difference, found.error
    if not model.prior.num_stages:
        return values
    last = drawn[-1]
    if last.by_chains:
        values |= _of_chains(model, last.z, seed)
    values["width"] = last.width
    if not last.width <= MOST_WIDTH:  # the walk would take long; NaN is wide too
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
            posteriors, seed = in_order(parts, "z"), derive(self.seed, "prior-fit")
            drawn = samples_of_stages(self.model, len(posteriors), seed, images.progress)
            found = fit_prior(self.model, posteriors, drawn, seed)
        return images.world.broadcast(found)
