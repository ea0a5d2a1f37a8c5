"""Where the maths meets a batch: the training loss of generator and encoder, and the targets of the posterior chains.

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


def langevin_settings(block: ChainBlock, num_steps: int | None = None) -> LangevinSettings:
    """The chain that a block of the configuration describes, of another length if one is given."""
    steps = block.num_steps if num_steps is None else num_steps
    return LangevinSettings(steps, block.step_size, block.noise_scale, block.temperature)


def log_likelihood(x: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """log N(x; mean, sigma^2 I) up to its constant, (B,), summed in float32."""
    return (x.float() - mean.float()).square().flatten(1).sum(1) * (-0.5 / sigma**2)


def lost(z: Tensor, bound: float) -> Tensor:
    """Which chains (N,) at z (N, Z) are not finite or have a root mean square above the bound."""
    return ~(z.float().square().mean(1) <= bound**2)


@dataclass(frozen=True)
class PosteriorSample:
    """Latents drawn for a batch of images, and what training needs of how they were drawn.

    Attributes:
        z: (B, Z) the chain's end.
        start_noise: (B, Z) noise of the encoder's draw, None without encoder.
        start_score: (B, Z) score of log p(x, z) at the chain's start; of an encoder without a chain, that of log p(z).
            None without encoder.
        trace: diagnostics of the chain.
        num_lost: chains that left their bound and count as still being at their start.
        moments: (B, 2 Z) mean and standard deviation of the encoder's Gaussians where z is a draw of these.
    """

    z: Tensor
    start_noise: Tensor | None
    start_score: Tensor | None
    trace: ChainTrace
    num_lost: int = 0
    moments: Tensor | None = None

    @property
    def drawn(self) -> Tensor | None:
        """The noise (B, Z) of the encoder's draw where that is the sample, None where a chain went on from it."""
        return None if len(self.trace.drift) else self.start_noise


def posterior_target(prior: RatioSequence, generator: nn.Module, x: Tensor, sigma: float) -> Target:
    """log p(x, z) as a Langevin target over z, with the given prior and sampling copy of the generator."""
    dtype = next(generator.parameters()).dtype
    of_prior = prior_target(prior, dtype)
    of_image = differentiate(lambda z: log_likelihood(x, generator(z.to(dtype)), sigma))

    def target(z: Tensor) -> tuple[Tensor, Tensor]:
        (log_prior, score), (log_image, image_score) = of_prior(z), of_image(z)
        return log_prior + log_image, score + image_score

    return target


def sample_posterior(
    model: ImageModel,
    sigma: float,
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
        chain_noise: (B, T, Z) standard normal, for the chain; T = 0 takes the start itself.
        settings: of the chain.
        bound: root mean square of a latent beyond which its chain has diverged.
        after_step: see `run_chain`.
        scored: whether the score at the start is wanted.
        graphs: keeps the chains of a GPU from one call to the next.
    """
    if model.encoder is None:
        z = prior.base.from_noise(start_noise)
    else:
        with torch.no_grad():
            location, log_std = model.encoder(x.to(next(model.parameters()).dtype))
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
