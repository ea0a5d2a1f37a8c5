"""Negatives from Langevin chains of the prior, short-run or persistent, as the paper has them.

What such chains draw is not p_k exactly, and the ratios learn to correct that too: p_k is then what the chains make
of it, and its density is not to be quoted (Nijkamp et al. 2019).

Shapes: B rows of this rank, R updates, M held-out posterior latents, Z coordinates.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ebmscale.density.langevin import ChainTrace
from ebmscale.density.prior import RatioSequence
from ebmscale.model.saved_part import SavedPart
from ebmscale.seeds import StreamNoise
from ebmscale.stages.chain_pools import ChainPools
from ebmscale.stages.negatives import Freeze
from ebmscale.stages.particles import Strength
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.supplies import Negatives
from ebmscale.world import World


class ChainNegatives:
    """A `NegativeSource`: exact draws of p_0 for the first stage, then the chains of `ChainPools`.

    Args:
        settings: how the prior is sampled.
        prior: p_0 with the form of the ratios.
        world: this process's place.
        after_step: see `ChainPools`.

    Attributes:
        pools: the chains.
    """

    judges_gain = False

    def __init__(self, settings: RatioSettings, prior: RatioSequence, world: World, after_step: Callable[[], None]):
        self.pools = ChainPools(settings, prior.base.dim, world, after_step)
        self.tables = self.pools.tables
        self.parts: dict[str, SavedPart] = {}
        self.trace: ChainTrace | None = None
        self._chains, self._num_stages = settings.chains, 0
        self._negatives_a_batch = settings.updates_per_batch * settings.stages.batch_size
        self.begin(prior, 0)

    @property
    def passes(self) -> float:
        """See `NegativeSource.passes`; a step of a chain takes a value and a gradient of every ratio."""
        steps = self._chains.num_chains * self._chains.num_steps
        return 3.0 * self._num_stages * steps / self._negatives_a_batch

    def begin(self, prior: RatioSequence, position: int) -> None:
        """See `NegativeSource.begin`."""
        self.pools.begin(prior.base, position)

    def advance(self, prior: RatioSequence, position: int) -> None:
        """Moves the chains that training draws from; p_0 needs none."""
        self._num_stages = prior.num_stages
        if prior.num_stages:
            z, self.trace = self.pools.moved("pool", prior, position, self._chains.num_steps)
            self.pools.training.fill(z)

    def draw(self, prior: RatioSequence, noise: StreamNoise, streams: Tensor, num_updates: int) -> Negatives:
        """See `NegativeSource.draw`."""
        if prior.num_stages:
            z = self.pools.training.draw(noise.uniform(num_updates), streams)
        else:
            z = prior.base.from_noise(noise.normal(num_updates, prior.base.dim))
        return Negatives(prior.coordinates(z), z.new_ones(z.shape[:2]))

    def held_out(self, prior: RatioSequence, position: int) -> Negatives:
        """See `NegativeSource.held_out`; the held-out chains move on."""
        pools = self.pools
        if prior.num_stages:
            z, _ = pools.moved("held_out_pool", prior, position, self._chains.num_steps, long=True)
            pools.held_out.fill(z)
        else:
            z = pools.base_draw(prior.base, "evidence", pools.held_out.row_streams, position)
        return Negatives(prior.coordinates(z), z.new_ones(len(z)))

    def shown(self, prior: RatioSequence, num: int) -> Tensor:
        """See `NegativeSource.shown`."""
        return self.pools.held_out.z.flatten(0, -2)[:num]

    def used(self) -> None:
        """See `NegativeSource.used`."""

    def spread(self) -> None:
        """See `NegativeSource.spread`."""

    def freeze(self, prior: RatioSequence, weights: Mapping[str, Tensor], q: Tensor, position: int) -> Freeze:
        """See `NegativeSource.freeze`; the chains are brought to p_k as `prior.equilibrate` says."""
        if self._chains.equilibrate == "tilt":
            found, chains, gain = self.pools.tilted(prior, dict(weights), _mean(prior.network, weights, q), position)
        else:
            found, gain = prior.append(weights), 1.0
            chains = self.pools.equilibrated(found, position)
        return Freeze(found, Strength(gain), lambda: self.pools.fill(chains))

    def undone_if_stopped(self) -> AbstractContextManager[None]:
        """See `NegativeSource.undone_if_stopped`."""
        return self.pools.undone_if_stopped()

    def take_restarted(self) -> int:
        """See `NegativeSource.take_restarted`."""
        return self.pools.take_restarted()

    def rehearse(self, prior: RatioSequence) -> None:
        """See `NegativeSource.rehearse`."""

    def values(self) -> dict[str, Any]:
        """See `NegativeSource.values`."""
        return {}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """See `NegativeSource.load_values`."""

    def resume(self, prior: RatioSequence) -> None:
        """See `NegativeSource.resume`."""


@torch.no_grad()
def _mean(network: nn.Module, weights: Mapping[str, Tensor], z: Tensor) -> float:
    """The mean of a ratio at points (M, Z)."""
    return float(functional_call(network, dict(weights), (z,)).double().mean())
