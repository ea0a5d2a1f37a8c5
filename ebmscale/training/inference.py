"""Posterior latents of a run's images, by the run's own chains."""

from torch import Tensor

from ebmscale.model.posterior import PosteriorSample, langevin_settings, sample_posterior
from ebmscale.seeds import StreamNoise
from ebmscale.training.run import Run


def infer(run: Run, x: Tensor, noise: StreamNoise) -> PosteriorSample:
    """Posterior latents of images x (B, C, H, W) under the current prior."""
    dim, settings = run.config.model.latent_dim, langevin_settings(run.config.posterior)
    return sample_posterior(
        run.sampling.model,
        run.noise_level.value,
        run.stages.prior,
        x,
        noise.normal(dim),
        noise.normal(settings.num_steps, dim),
        settings,
        run.config.guard.chain_bound,
        run.poll,
        scored=run.generator_trains,
        graphs=run.sampling.graphs,
    )
