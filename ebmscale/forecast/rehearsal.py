"""A rehearsal: a short run of the same configuration in a temporary folder, moved to its most expensive stage."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ebmscale.address import Address
from ebmscale.config import RunConfig
from ebmscale.stages.ratio_trainer import RatioTrainer
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.stop import StopSignal
from ebmscale.training.opening import open_run
from ebmscale.training.run import Run
from ebmscale.world import World


@contextmanager
def rehearsal(config: RunConfig, world: World) -> Iterator[Run]:
    """A new run of this configuration in a temporary folder, which is deleted afterwards (collective).

    Raises:
        EbmscaleError: what the run itself would raise.
    """
    with tempfile.TemporaryDirectory(prefix="ebmscale-rehearsal-") as folder:
        changes = {
            "storage": config.storage.model_copy(update={"url": Address(folder)}),
            "run": config.run.model_copy(update={"start_from": None}),
        }
        run = open_run(config.model_copy(update=changes), world, StopSignal())
        try:
            yield run
        finally:
            run.close()


def go_to_last_stage(run: Run) -> None:
    """Gives the prior all ratios but the last, copies of the one in training (collective)."""
    trainer = run.stages
    if not isinstance(trainer, StageTrainer):
        return
    prior, weights = trainer.prior.prefix(0), trainer.engine.full_weights()
    for _ in range(run.config.most_stages - 1):
        prior = prior.append(weights)
    trainer.prior = prior
    trainer.negatives.rehearse(prior)


def try_base(trainer: RatioTrainer, position: int) -> None:
    """Fits the base to a buffer of made-up posteriors, so that the cost can be measured (collective)."""
    buffer = trainer.latents.buffer
    buffer.fill(0.1 + torch.rand_like(buffer.rows))
    trainer.fit_base(position)
