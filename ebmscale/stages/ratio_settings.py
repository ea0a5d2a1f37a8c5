"""What a trainer of ratios is told: one value for the stages and for a live prior."""

import math
from dataclasses import dataclass

import torch

from ebmscale.config import PriorBlock, RatioOptimizerBlock, StagesBlock
from ebmscale.density.schedule import Criteria


@dataclass(frozen=True)
class RatioSettings:
    """How ratios are trained and the prior is sampled.

    Attributes:
        stages: how a ratio is trained and when a stage moves on.
        chains: of the prior.
        optimizer: of the ratio network.
        seed: the run's seed.
        num_streams: S.
        target_moves: whether a generator is training beside it (see `Criteria`).
        ends_at: `samples_seen` at the run's end (see `Criteria`).
        chain_bound: root mean square of a latent beyond which a chain starts again from p_0.
        chain_dtype: in which prior chains evaluate the ratio networks (default: their own).
        amortised: whether posteriors come as Gaussians and not as samples of them (see `Latents.observe`): then no
            latent is trained on twice, and the ratio cannot overfit to the buffer.
        maps: whether latents are maps, whose coordinates a fitted base leaves at their places.
    """

    stages: StagesBlock
    chains: PriorBlock
    optimizer: RatioOptimizerBlock
    seed: int
    num_streams: int
    target_moves: bool = True
    ends_at: int | None = None
    chain_bound: float = math.inf
    chain_dtype: torch.dtype | None = None
    amortised: bool = False
    maps: bool = False

    @property
    def updates_per_batch(self) -> int:
        """Updates of the ratio network for every batch of images; `auto` must have been resolved before."""
        found = self.stages.updates_per_batch
        if found == "auto":
            raise ValueError("stages.updates_per_batch is auto; see model.updates")
        return found

    @property
    def lasts_as_it_pays(self) -> bool:
        """Whether the run's own record says how long a stage lasts: the target stands still, and there is a choice."""
        return not self.target_moves and (self.ends_at is None or self.stages.min_samples < self.ends_at)

    @property
    def criteria(self) -> Criteria:
        """When a stage moves on."""
        of_stages = self.stages.model_dump(include=set(Criteria.__dataclass_fields__))
        return Criteria(target_moves=self.target_moves, ends_at=self.ends_at, **of_stages)
