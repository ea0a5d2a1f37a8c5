"""A rehearsal: a short run of the same configuration in a temporary folder, moved to its most expensive stage."""

import copy
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ebmscale.address import Address
from ebmscale.config import RunConfig
from ebmscale.networks import Standardised, quadratic_part
from ebmscale.seeds import torch_generator
from ebmscale.stages.negatives import Freeze
from ebmscale.stages.ratio_trainer import RatioTrainer
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.stages.trainer import evaluated
from ebmscale.stop import StopSignal
from ebmscale.training.opening import open_run
from ebmscale.training.run import Run
from ebmscale.world import World

GAP = 5.0
"""Nats that a stage is taken to add. The number of rungs that particles take grows with its square root."""
CLUSTERS = 32
"""Of made-up posteriors. Their centres have a standard deviation of 1, as posteriors of images have."""


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
    """Goes to the stage before which the prior has all ratios but one (collective)."""
    if isinstance(run.stages, StageTrainer):
        go_to_stage(run.stages, run.config.most_stages - 1)


def go_to_stage(trainer: StageTrainer, num_before: int) -> None:
    """Gives the prior so many ratios, copies of the one in training (collective)."""
    prior, weights = trainer.prior.prefix(0), trainer.engine.full_weights()
    for _ in range(num_before):
        prior = prior.append(weights)
    trainer.prior = prior
    trainer.negatives.rehearse(prior)


def try_freeze(trainer: StageTrainer, position: int) -> Freeze:
    """Freezes a made-up ratio of an ordinary gap, so that the cost can be measured. Nothing is changed (collective).

    An untrained ratio is zero, and particles need not move to follow it. Chains take as many steps whatever the ratio.
    """
    network = copy.deepcopy(trainer.prior.network).requires_grad_(False)
    if not isinstance(network, Standardised):
        return trainer.next_prior(position)
    generator = torch_generator(0, "rehearsal")
    head = quadratic_part(network.inner)
    for weights in network.parameters():
        wide = weights[0].numel() if weights.dim() > 1 else 1
        weights.copy_(torch.randn(weights.shape, generator=generator) / math.sqrt(wide))
    if head is not None:  # a random quadratic form may have no normaliser
        head.quadratic.weight.zero_()
    z = trainer.negatives.held_out(trainer.prior, position).z
    f = evaluated(network, z)
    scale = math.sqrt(2 * GAP) / f.std().clamp_min(1e-12)
    network.gain.mul_(scale)
    likely = torch.softmax(scale * f, 0).cpu()
    q = z[torch.multinomial(likely, len(z), replacement=True, generator=generator).to(z.device)]
    return trainer.negatives.freeze(trainer.prior, network.state_dict(), q, position)


def try_base(trainer: RatioTrainer, position: int) -> None:
    """Fits the base to a buffer of made-up posteriors, so that the cost can be measured (collective).

    They lie in clusters, so that a base that is chosen has many components, as those of images have.
    """
    buffer, dim = trainer.latents.buffer, trainer.latents.base.dim
    rows, generator = buffer.rows, torch_generator(0, "rehearsal")
    made_up = 0.1 + torch.rand(rows.shape, generator=generator)
    centres = torch.randn((CLUSTERS, dim), generator=generator)
    made_up[:, :dim] += centres[torch.randint(CLUSTERS, (len(rows),), generator=generator)]
    buffer.fill(made_up)
    trainer.fit_base(position)
