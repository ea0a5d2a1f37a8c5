"""The prior's normaliser by sequential Monte Carlo along its stages, on one worker or several.

Shapes: G groups of this worker, N particles of a group, Z latent, K stages.
"""

from collections.abc import Sequence

import torch

from ebmscale.density.path import Annealed, Annealing, Normaliser
from ebmscale.density.prior import RatioSequence
from ebmscale.density.smc import anneal, normaliser
from ebmscale.errors import DivergenceError
from ebmscale.kernels.closed_form import stage_legs
from ebmscale.seeds import StreamNoise
from ebmscale.world import World, owned_rows

NUM_GROUPS, GROUP_SIZE = 16, 512


def walk_prior(
    prior: RatioSequence, seed: int, groups: Sequence[int], group_size: int, settings: Annealing | None = None
) -> Annealed:
    """Moves particles from exact draws of p_0 along the stages to p_K.

    The noise depends on (seed, group) alone, so a group has the same particles on every worker.

    Args:
        prior: the frozen ratios.
        seed: of the particles.
        groups: numbers of the G groups.
        group_size: N.
        settings: of the walk.

    Raises:
        DivergenceError: the particles cannot follow.
    """
    rows = torch.as_tensor(groups, dtype=torch.int64).repeat_interleave(group_size)
    first = StreamNoise(seed, "walk-prior-start", 0, rows).normal(prior.base.dim)
    inside = prior.in_coordinates()  # as the ratios see them, where a fitted base is white
    try:
        walked = anneal(
            stage_legs(inside),
            inside.base.from_noise(first).view(len(groups), group_size, -1),
            lambda leg, rung: StreamNoise(seed, f"walk-prior-{leg}", rung, rows),
            settings or Annealing(),
        )
    except ValueError as error:
        raise DivergenceError(
            f"Particles cannot follow the stages of the prior ({error}); train it anew, with a lower train.ratio.rate."
        ) from None
    walked.z = prior.from_coordinates(walked.z.flatten(0, 1)).view_as(walked.z)
    return walked


def measure_normaliser(
    prior: RatioSequence,
    seed: int = 0,
    world: World | None = None,
    num_groups: int = NUM_GROUPS,
    group_size: int = GROUP_SIZE,
    settings: Annealing | None = None,
) -> Normaliser:
    """log Z_K with its standard error, equal on all workers and for any number of workers (collective).

    Args:
        prior: the frozen ratios.
        seed: of the particles.
        world: the workers; None means this process alone.
        num_groups: independent groups, which the workers divide among them. There must be at least one for each worker.
        group_size: N, particles of a group.
        settings: of the walk.
    """
    world = world or World.alone()
    groups = owned_rows(num_groups, num_groups, world).tolist()
    walked = walk_prior(prior, seed, groups, group_size, settings)
    walked.log_z, walked.log_z_bridge = (torch.cat(world.gather(part)) for part in (walked.log_z, walked.log_z_bridge))
    return normaliser(walked)
