"""What a run that is resumed keeps from its beginning where its configuration leaves it open."""

import logging

from ebmscale.config import RunConfig

log = logging.getLogger(__name__)


def with_begun(config: RunConfig, begun: RunConfig) -> RunConfig:
    """The configuration with what a run began with, where it does not say another itself.

    These are `prior.kind` and `train.ratio.weight_decay`, whose defaults have changed, and the number of ratio updates
    where `auto` is asked for.
    """
    if config.stages.updates_per_batch == "auto":
        updates = {"updates_per_batch": begun.stages.updates_per_batch}
        config = config.model_copy(update={"stages": config.stages.model_copy(update=updates)})
    ratio, decay = config.train.ratio, begun.train.ratio.weight_decay
    if "weight_decay" not in ratio.model_fields_set and ratio.weight_decay != decay:
        log.info("train.ratio.weight_decay: %g, as the run began", decay)
        train = config.train.model_copy(update={"ratio": ratio.model_copy(update={"weight_decay": decay})})
        config = config.model_copy(update={"train": train})
    if "kind" in config.prior.model_fields_set or config.prior.kind == begun.prior.kind:
        return config
    log.info("prior.kind: %s, as the run began", begun.prior.kind)
    return config.model_copy(update={"prior": config.prior.model_copy(update={"kind": begun.prior.kind})})
