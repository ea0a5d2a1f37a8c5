"""Makes the trainer of a run's stages, with the source of negatives that the configuration names."""

from collections.abc import Callable

from ebmscale.density.prior import RatioSequence
from ebmscale.stages.chain_negatives import ChainNegatives
from ebmscale.stages.density_negatives import DensityNegatives
from ebmscale.stages.negatives import NegativeSource
from ebmscale.stages.ratio_engine import RatioEngine
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.world import World


def make_stage_trainer(
    engine: RatioEngine,
    prior: RatioSequence,
    settings: RatioSettings,
    world: World,
    after_step: Callable[[], None] = lambda: None,
) -> StageTrainer:
    """A trainer whose negatives come from where `prior.kind` says.

    Args:
        engine: of the ratio network.
        prior: p_0 with the form of the ratios.
        settings: how ratios are trained and the prior is sampled.
        world: this process's place.
        after_step: called after every step of the long chains, those of `evidence` and `decide`; where it raises,
            nothing has changed.
    """
    negatives: NegativeSource
    if settings.chains.kind == "density":
        negatives = DensityNegatives(settings, prior, world)
    else:
        negatives = ChainNegatives(settings, prior, world, after_step)
    return StageTrainer(engine, prior, negatives, settings, world)
