"""The charts of energies under every p_k, and those of chains.

Shapes: N latents, Z latent.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ebmscale.density.langevin import ChainTrace
from ebmscale.evaluate.prior_fit import StageSamples
from ebmscale.evaluate.rounding import with_error
from ebmscale.evaluate.verdict import Fit
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.sampler import agreement, fails_check
from ebmscale.report import pictures
from ebmscale.report.pages import Picture


def energies(
    model: LatentModel, posteriors: Tensor, drawn: Sequence[StageSamples], at_freeze: Mapping[int, Fit]
) -> list[Picture]:
    """Energies of posterior latents (N, Z) and of samples under every p_k.

    Args:
        model: of p_K.
        posteriors: of held-out images.
        drawn: samples of p_0, ..., p_K.
        at_freeze: how stages fitted when they were frozen; for those whose posteriors have moved since.
    """
    found = []
    for stage, samples in enumerate(drawn):
        earlier, z = model.at_stage(stage), samples.z.to(posteriors)
        of_posteriors, of_samples = -earlier.log_prior(posteriors), -earlier.log_prior(z)
        now, then = agreement(earlier.prior, z, posteriors, samples.unique), at_freeze.get(stage)
        gap, fails = f"mean energy of z⁺ minus that of z⁻: {with_error(now.difference, now.error)} nats", now.fails
        if then is not None:
            gap += f", and {with_error(-then.gap, then.error)} when the stage was frozen"
            fails = fails_check(then.gap, then.error)
        chart = chart_uri(pictures.energy_histogram(of_posteriors, of_samples))
        found.append(Picture(chart, f"k = {stage}", f"{gap}{'; the check fails' if fails and stage else ''}"))
    return found


def chains(model: LatentModel, of_posteriors: ChainTrace | None, num: int, seed: int) -> list[Picture]:
    """Log densities along the posterior chains, where there are steps, and along `num` chains of every stage."""
    found = []
    if of_posteriors is not None and len(of_posteriors.log_density):
        found.append(_chain(of_posteriors, "posterior chain: log p(x, z)"))
    traces = model.sample_chains(num, seed)[1]
    return found + [_chain(one, f"prior chain, stage {stage}: log p_{stage}(z)") for stage, one in enumerate(traces, 1)]


def chart_uri(svg: bytes) -> str:
    """A chart as an address of its content."""
    return pictures.data_uri(svg, "image/svg+xml")


def _chain(trace: ChainTrace, title: str) -> Picture:
    last = trace.log_density[-max(len(trace.log_density) // 4, 1) - 1 :]
    return Picture(
        chart_uri(pictures.chain_chart(trace)),
        title,
        f"{len(trace.log_density)} steps; {float(last[-1] - last[0]):+.2f} nats over the last quarter",
    )
