"""Training a stage on posteriors that are a new batch of one Gaussian at every position."""

import torch
from torch import Tensor

from ebmscale.seeds import torch_generator
from ebmscale.stages.stage_trainer import StageTrainer

STREAMS, BATCH = 4, 64


def posterior(position: int, num: int = BATCH) -> Tensor:
    """N((1, 1), 0.5^2 I), a new batch at every position."""
    return 1 + 0.5 * torch.randn(num, 2, generator=torch_generator(0, "posterior", position))


def train(trainer: StageTrainer, begin: int, end: int, num_held_out: int = BATCH) -> list[type]:
    """Batches `begin` to `end`, with a measurement after every second one; the kinds of decisions."""
    kinds = []
    for position in range(begin * BATCH, end * BATCH, BATCH):
        trainer.observe(posterior(position), torch.arange(BATCH) % STREAMS)
        trainer.advance_prior(position)
        trainer.update(position)
        now = position + BATCH
        if now % (2 * BATCH) == 0:
            held_out = posterior(10**6 + now, num_held_out)
            kinds.append(type(trainer.decide(trainer.evidence(held_out, now), now)))
    return kinds
