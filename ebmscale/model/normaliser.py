"""The prior's normaliser by sequential Monte Carlo along its stages, on one worker or several.

Shapes: G groups of this worker, N particles of a group, Z latent, K stages.
"""

from collections.abc import Sequence

import torch

from ebmscale.density.path import Annealed, Annealing, Normaliser, stage_legs
from ebmscale.density.prior import RatioSequence
from ebmscale.density.smc import anneal, normaliser
from ebmscale.seeds import StreamNoise
from ebmscale.world import World, owned_rows

NUM_GROUPS, GROUP_SIZE = 16, 512


def walk_prior(
    prior: RatioSequence, seed: int, groups: Sequence[int], group_size: int, settings: Annealing | None = None
) -> Annealed:
    """Particles of p_K from exact draws of p_0; the noise belongs to (seed, group), so groups may lie anywhere."""
    rows = torch.as_tensor(groups, dtype=torch.int64).repeat_interleave(group_size)
    first = StreamNoise(seed, "walk-prior-start", 0, rows).normal(prior.base.dim)
    return anneal(
        stage_legs(prior),
        prior.base.from_noise(first).view(len(groups), group_size, -1),
        lambda leg, rung: StreamNoise(seed, f"walk-prior-{leg}", rung, rows),
        settings or Annealing(),
    )


def measure_normaliser(
    prior: RatioSequence,
    seed: int = 0,
    world: World | None = None,
    num_groups: int = NUM_GROUPS,
    group_size: int = GROUP_SIZE,
    settings: Annealing | None = None,
) -> Normaliser:
    """log Z_K with its standard error, the same on every worker whatever their number (collective).

    Args:
        prior: the frozen stack.
        seed: of the particles.
        world: the workers; None is this process alone.
        num_groups: independent runs, spread over the workers; at least as many as these.
        group_size: particles of a run.
        settings: of the walk.
    """
    world = world or World.alone()
    groups = owned_rows(num_groups, num_groups, world).tolist()
    walked = walk_prior(prior, seed, groups, group_size, settings)
    walked.log_z, walked.log_z_bridge = (torch.cat(world.gather(part)) for part in (walked.log_z, walked.log_z_bridge))
    return normaliser(walked)
