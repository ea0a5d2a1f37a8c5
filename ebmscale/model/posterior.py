"""Posterior inference for a batch of images: the target of the posterior chains, and samples from it.

Shapes: B batch, Z latent, C H W image. Pixels are in [-1, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebmscale.config import ChainBlock
from ebmscale.density.langevin import ChainTrace, LangevinSettings, Target, differentiate
from ebmscale.density.prior import RatioSequence
from ebmscale.kernels.chain_graph import ChainGraphs, Chains, Subject, run_chains
from ebmscale.kernels.prior_chain import prior_target
from ebmscale.model.image_model import ImageModel
from ebmscale.model.noise_level import Sigma
from ebmscale.networks import weight_of


def langevin_settings(block: ChainBlock, num_steps: int | None = None) -> LangevinSettings:
    """The chain of a configuration block. `num_steps`, if given, replaces the number of steps of the block."""
    steps = block.num_steps if num_steps is None else num_steps
    return LangevinSettings(steps, block.step_size, block.noise_scale, block.temperature)


def log_likelihood(x: Tensor, mean: Tensor, sigma: Sigma) -> Tensor:
    """log N(x; mean, sigma^2 I) (B,) in nats up to its constant, for x and mean (B, C, H, W), summed in float32."""
    return (x.float() - mean.float()).square().flatten(1).sum(1) * (-0.5 / sigma**2)


def lost(z: Tensor, bound: float) -> Tensor:
    """Whether chains at z (N, Z) are not finite or have a root mean square above the bound, as booleans (N,)."""
    return ~(z.float().square().mean(1) <= bound**2)


@dataclass(frozen=True)
class PosteriorSample:
    """Posterior latents of a batch of images, with the quantities that training needs.

    Attributes:
        z: (B, Z) end of the chain.
        start_noise: (B, Z) noise of the encoder's draw; None without encoder.
        start_score: (B, Z) score of log p(x, z) at the start of the chain. For an encoder without a chain it is the
            score of log p(z). None without encoder, or if it was not requested.
        trace: diagnostics of the chain.
        num_lost: chains that left the bound. Their latents are those of their start.
        moments: (B, 2 Z) mean and standard deviation of the encoder's Gaussians if z is a draw from them.
    """

    z: Tensor
    start_noise: Tensor | None
    start_score: Tensor | None
    trace: ChainTrace
    num_lost: int = 0
    moments: Tensor | None = None

    @property
    def drawn(self) -> Tensor | None:
        """The noise (B, Z) of the encoder's draw if z is that draw; None if a chain followed."""
        return None if len(self.trace.drift) else self.start_noise

    @property
    def as_observed(self) -> Tensor:
        """What trainers of ratios keep: `moments` where there are any, else z."""
        return self.z if self.moments is None else self.moments


def posterior_target(prior: RatioSequence, generator: nn.Module, x: Tensor, sigma: Sigma) -> Target:
    """log p(x, z) as a Langevin target over z.

    Args:
        prior: p_{k-1}.
        generator: a sampling copy, maps z (B, Z) to mean images (B, C, H, W).
        x: (B, C, H, W) images.
        sigma: standard deviation of p(x | z).
    """
    dtype = weight_of(generator).dtype
    of_prior = prior_target(prior, dtype)
    of_image = differentiate(lambda z: log_likelihood(x, generator(z.to(dtype)), sigma))

    def target(z: Tensor) -> tuple[Tensor, Tensor]:
        (log_prior, score), (log_image, image_score) = of_prior(z), of_image(z)
        return log_prior + log_image, score + image_score

    return target


def sample_posterior(
    model: ImageModel,
    sigma: Sigma,
    prior: RatioSequence,
    x: Tensor,
    start_noise: Tensor,
    chain_noise: Tensor,
    settings: LangevinSettings,
    bound: float = math.inf,
    after_step: Callable[[], None] = lambda: None,
    scored: bool = True,
    graphs: ChainGraphs | None = None,
) -> PosteriorSample:
    """Draws z ~ p(z | x) by short-run Langevin from p_0, or from the encoder where the model has one.

    Args:
        model: a sampling copy of the networks.
        sigma: standard deviation of p(x | z).
        prior: p_{k-1}.
        x: (B, C, H, W) images.
        start_noise: (B, Z) standard normal, for the start.
        chain_noise: (B, T, Z) standard normal, for the chain. With T = 0 the start is the sample.
        settings: of the chain.
        bound: a chain whose latent has a larger root mean square counts as diverged.
        after_step: see `run_chain`.
        scored: whether to compute the score at the start where that costs an evaluation.
        graphs: the CUDA graphs of earlier calls; None runs the chains step by step.
    """
    if model.encoder is None:
        z = prior.base.from_noise(start_noise)
    else:
        with torch.no_grad():
            location, log_std = model.encoder(x.to(weight_of(model).dtype))
        location, std = location.float(), log_std.float().exp()
        z = location + std * start_noise
        if settings.num_steps == 0:
            score = prior_target(prior)(z)[1] if scored else None
            moments = torch.cat([location, std], dim=1)
            return PosteriorSample(z, start_noise, score, ChainTrace(*[z.new_zeros(0)] * 3), moments=moments)

    def target_of(x: Tensor) -> Target:
        return posterior_target(prior, model.generator, x, sigma)

    chains = Chains(z, x, chain_noise)
    if graphs is None or not settings.num_steps:
        first, last, trace = run_chains(target_of(x), chains, settings, after_step)
    else:
        first, last, trace = graphs.run(Subject(model.generator, prior), target_of, chains, settings, after_step)
    gone = lost(last, bound)
    num_lost = int(gone.sum())
    ends = torch.where(gone[:, None], first.z, last) if num_lost else last
    if model.encoder is None:
        return PosteriorSample(ends, None, None, trace, num_lost)
    return PosteriorSample(ends, start_noise, first.score, trace, num_lost)
