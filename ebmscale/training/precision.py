"""The precision of a run, where the configuration leaves it to the machine."""

import logging

from ebmscale.config import Precision, RunConfig
from ebmscale.kernels.rate import bf16_gain
from ebmscale.world import World

log = logging.getLogger(__name__)


def least_bf16_gain(config: RunConfig, world: World) -> float:
    """The least speed-up of matrix products by bf16 over all ranks (collective); 1 for a run in fp32."""
    return 1.0 if config.precision == "fp32" else min(world.gather_objects(bf16_gain(world.device)))


def with_precision(config: RunConfig, gain: float, begun: Precision = "auto") -> RunConfig:
    """The configuration with the precision in place of `auto`. Warns if bf16 is slower than fp32 here.

    Args:
        config: as it was given.
        gain: see `least_bf16_gain`.
        begun: the precision with which the run began; `auto` for a new run.
    """
    chosen = begun if config.precision == "auto" else config.precision
    if chosen == "auto" and config.model.is_identity:
        chosen = "fp32"
    if chosen == "auto":
        chosen = "bf16" if gain > 1 else "fp32"
        log.info("precision: %s; bf16 products are %.2g times as fast as fp32 ones here", chosen, gain)
    elif chosen == "bf16" and gain < 1:
        log.warning("bf16 products are only %.2g times as fast as fp32 ones here: precision=fp32 would be faster", gain)
    return config.model_copy(update={"precision": chosen})
