"""Samples of a prior by Langevin chains, stage by stage.

Shapes: N samples, Z latent.
"""

import torch
from torch import Tensor

from ebmscale.density.langevin import ChainTrace, LangevinSettings
from ebmscale.density.prior import RatioSequence
from ebmscale.kernels.prior_chain import run_prior_chain
from ebmscale.seeds import StreamNoise


def sample_stage_by_stage(
    prior: RatioSequence, noise: StreamNoise, settings: LangevinSettings, device: torch.device
) -> tuple[Tensor, list[ChainTrace]]:
    """Latents (N, Z) of p_K and the trace of the chains at every stage, on the CPU.

    A chain starts from an exact draw of p_0 and passes through p_1, ..., p_K.

    Args:
        prior: on `device`.
        noise: of N rows, on the CPU.
        settings: of the chain at each stage.
        device: where to compute.
    """
    z, traces = prior.base.from_noise(noise.normal(prior.base.dim).to(device)), []
    for stage in range(1, prior.num_stages + 1):
        steps = noise.normal(settings.num_steps, prior.base.dim).to(device)
        z, trace = run_prior_chain(prior.prefix(stage), z, steps, settings)
        traces.append(on_cpu(trace))
    return z.cpu(), traces


def on_cpu(trace: ChainTrace) -> ChainTrace:
    """The same trace on the CPU."""
    return ChainTrace(*(values.cpu() for values in trace))
