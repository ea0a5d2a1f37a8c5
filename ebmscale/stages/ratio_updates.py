"""The updates of a batch: one engine, a seeded noise for this rank's rows, and a loss for every update.

Shapes: B rows of this rank, N points, Z latent.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.density.losses import nan_above_limit
from ebmscale.networks import weight_of
from ebmscale.seeds import StreamNoise
from ebmscale.stages.ratio_engine import RatioEngine
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.world import World, owned_rows

MEASURED = 4096
"""Posteriors that updates use, of all ranks, of which the loss is measured."""

Losses = Callable[[StreamNoise, Tensor], Iterator[Tensor]]
"""From the noise of this rank's rows and their streams (B,) to the loss of every update.

A loss is computed when it is asked for, so under the weights that the update before it left.
"""


@dataclass(frozen=True)
class RatioReport:
    """What the ratio updates of one batch gave; `bad`: an update was left out (see `training.guard`)."""

    loss: Tensor
    grad_norm: float
    bad: bool


class RatioUpdates:
    """Makes the updates of the ratio network.

    Args:
        engine: of the network.
        settings: how ratios are trained.
        world: this process's place.

    Attributes:
        grad_norm: of the last update that was not left out.
    """

    def __init__(self, engine: RatioEngine, settings: RatioSettings, world: World):
        self.grad_norm = 0.0
        self._engine, self._settings, self._world = engine, settings, world

    def make(self, position: int, losses: Losses, rate: float, limit: float) -> RatioReport:
        """The updates of a batch (collective).

        Args:
            position: `samples_seen` at the start of the batch.
            losses: of the updates.
            rate: the learning rate.
            limit: an update whose loss on any rank is above it is left out, as one that is not finite.
        """
        stages, num_streams = self._settings.stages, self._settings.num_streams
        rows = owned_rows(stages.batch_size, num_streams, self._world)
        streams = rows % num_streams
        noise = StreamNoise(self._settings.seed, "ratio", position, streams, self._world.device)
        share = len(rows) * self._world.size / stages.batch_size  # makes the ranks' average the global mean
        total, bad = torch.zeros((), device=self._world.device), False
        for loss in losses(noise, streams):
            total += loss.detach()
            self._engine.backward(nan_above_limit(loss, loss, limit) * share)
            norm = self._engine.step(rate)
            if math.isfinite(norm):
                self.grad_norm = norm
            else:
                bad = True
        return RatioReport(total / self._settings.updates_per_batch, self.grad_norm, bad)

    def like_an_update(self, position: int, draw: Callable[[StreamNoise, Tensor, int], Tensor]) -> Tensor:
        """What `draw` gives of noise and streams (B,) as an update has them: points (N, Z) of this rank."""
        rows = owned_rows(MEASURED, self._settings.num_streams, self._world)
        streams = rows % self._settings.num_streams
        noise = StreamNoise(self._settings.seed, "memorised", position, streams, self._world.device)
        return draw(noise, streams, 1)[:, 0]

    def log_ratio(self, points: Tensor) -> Tensor:
        """The network's values at points (..., N, Z) in the prior's coordinates, in fp32."""
        dtype = weight_of(self._engine.module).dtype
        return self._engine(points.to(dtype)).float()
