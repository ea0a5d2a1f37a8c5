"""How strong a ratio may be: as strong as chains of its prior bear.

A classifier says what it likes where neither of its sides ever was, and a long-trained one says it loudly; chains of
p_{k-1} e^f then leave for such places, where f is far higher than at any posterior. On the line p_{k-1} e^(g f) the
log likelihood of posteriors is concave in the gain g, and greatest where the mean of f under that density equals its
mean at posteriors (an exponential family of one parameter). So the gain climbs from 0 while chains are run, and stays
where the two means meet.

Shapes: N chains, Z latent, T steps.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ebmscale.density.langevin import LangevinSettings
from ebmscale.density.prior import RatioSequence
from ebmscale.kernels.prior_chain import run_prior_chain
from ebmscale.networks import RatioNet
from ebmscale.world import World

MOST_GAIN = 2.0
DAMPING = 0.3
"""Of a Newton step, as the chains follow a new gain slowly."""


def tilt(
    prior: RatioSequence,
    weights: Mapping[str, Tensor],
    posterior_mean: float,
    z: Tensor,
    noise: Tensor,
    settings: LangevinSettings,
    world: World,
    after_step: Callable[[], None] = lambda: None,
    dtype: torch.dtype | None = None,
) -> tuple[list[float], Tensor]:
    """The gains of all steps and the chains' ends (N, Z) under p_{k-1} e^(g f) (collective).

    The gain to keep is the mean of the last quarter's. It moves by Newton steps of the log likelihood, of at most
    2 `MOST_GAIN` / T.

    Args:
        prior: p_{k-1}.
        weights: of the new ratio f.
        posterior_mean: of f at held-out posterior latents.
        z: (N, Z) chains of p_{k-1}, this rank's.
        noise: (N, T, Z) standard normal.
        settings: of the chains.
        world: this process's place.
        after_step: see `run_chain`.
        dtype: see `run_prior_chain`.
    """
    one_step = LangevinSettings(1, settings.step_size, settings.noise_scale, settings.temperature)
    alone = prior.prefix(0).append(weights)
    gain, gains = 0.0, []
    for step in noise.unbind(1):
        z, _ = run_prior_chain(with_gain(prior, weights, gain), z, step[:, None], one_step, after_step, dtype)
        f = alone.log_ratios(z)[0].double()
        count, total, squares = world.sum(torch.stack([f.new_tensor(len(f)), f.sum(), f.square().sum()])).tolist()
        mean = total / count
        newton = DAMPING * (posterior_mean - mean) / max(squares / count - mean**2, 1e-6)
        most = 2 * MOST_GAIN / settings.num_steps
        gain = min(max(gain + min(max(newton, -most), most), 0.0), MOST_GAIN)
        gains.append(gain)
    return gains, z


def with_gain(prior: RatioSequence, weights: Mapping[str, Tensor], gain: float) -> RatioSequence:
    """p_{k-1} e^(g f)."""
    assert isinstance(prior.network, RatioNet)
    return prior.append(prior.network.times(weights, gain))
