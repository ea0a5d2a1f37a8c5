"""What a run that is resumed keeps from its beginning where its configuration leaves it open."""

import logging

from ebmscale.config import RunConfig

log = logging.getLogger(__name__)


def with_begun(config: RunConfig, begun: RunConfig) -> RunConfig:
    """The configuration with the `prior.kind` that a run began with, where it does not say another itself.

    Its number of ratio updates stays too, where `auto` is asked for.
    """
    if config.stages.updates_per_batch == "auto":
        updates = {"updates_per_batch": begun.stages.updates_per_batch}
        config = config.model_copy(update={"stages": config.stages.model_copy(update=updates)})
    if "kind" in config.prior.model_fields_set or config.prior.kind == begun.prior.kind:
        return config
    log.info("prior.kind: %s, as the run began", begun.prior.kind)
    return config.model_copy(update={"prior": config.prior.model_copy(update={"kind": begun.prior.kind})})
