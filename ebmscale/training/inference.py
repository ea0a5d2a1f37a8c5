"""Posterior latents of a run's images: by whole chains, or by chains that go on where they ended."""

import torch
from torch import Tensor

from ebmscale.density.langevin import ChainTrace, steps_to_plateau
from ebmscale.model.posterior import PosteriorSample, langevin_settings, sample_posterior
from ebmscale.seeds import StreamNoise
from ebmscale.training.memory import LatentMemory
from ebmscale.training.run import Run


def infer(run: Run, x: Tensor, noise: StreamNoise, num_steps: int) -> PosteriorSample:
    """Posterior latents of images x (B, C, H, W) under the current prior, by chains of `num_steps`."""
    dim = run.config.model.latent_dim
    return _chain(run, x, noise.normal(dim), noise.normal(num_steps, dim))


def infer_batch(run: Run, x: Tensor, samples: Tensor, noise: StreamNoise) -> PosteriorSample:
    """The same for training images, of index `samples` (B,) into the split: chains that are remembered go on."""
    if run.memory is None:
        return infer(run, x, noise, run.posterior_steps)
    return _go_on(run, run.memory, x, samples, noise)


def _go_on(run: Run, memory: LatentMemory, x: Tensor, samples: Tensor, noise: StreamNoise) -> PosteriorSample:
    num_old, num_new, dim = run.config.posterior.num_steps, run.posterior_steps, run.config.model.latent_dim
    known, begin = memory.recall(samples)
    first, steps = noise.normal(dim), noise.normal(max(num_old, num_new), dim)
    old, new = known.nonzero().flatten().to(x.device), (~known).nonzero().flatten().to(x.device)
    z, parts = torch.empty_like(first), []
    for rows, num_steps, starts in ((old, num_old, begin), (new, num_new, None)):
        if len(rows):
            at = starts[rows] if starts is not None else None
            parts.append(_chain(run, x[rows], first[rows], steps[rows, :num_steps], at))
            z[rows] = parts[-1].z
    num_lost = sum(part.num_lost for part in parts)
    trace = parts[0].trace if parts else ChainTrace(*[z.new_zeros(0)] * 3)
    return PosteriorSample(z, None, None, trace, num_lost)


def _chain(run: Run, x: Tensor, first: Tensor, steps: Tensor, begin: Tensor | None = None) -> PosteriorSample:
    return sample_posterior(
        run.sampling.model,
        run.config.model.sigma,
        run.stages.prior,
        x,
        first,
        steps,
        langevin_settings(run.config.posterior, steps.shape[1]),
        run.config.guard.chain_bound,
        run.poll,
        scored=run.generator_trains,
        begin=begin,
        graphs=run.sampling.graphs,
    )


def plateau_of(run: Run, trace: ChainTrace) -> int:
    """Steps for training images, from the chains of all ranks' held-out images (collective)."""
    log_density = trace.log_density.double() * len(run.held_out)
    if not len(log_density):  # an encoder alone
        return run.posterior_steps
    counts = run.world.sum(torch.cat([log_density, log_density.new_tensor([len(run.held_out)])]))
    return steps_to_plateau(counts[:-1] / counts[-1], run.config.posterior.plateau)
