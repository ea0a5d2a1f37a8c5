"""Chains of the prior: those that ratios are trained on, and held-out ones; how they move, and come to a new prior.

Shapes: O streams of this rank, N chains of a stream, Z latent.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ebmscale.density.langevin import ChainTrace
from ebmscale.density.path import Annealing, stage_legs
from ebmscale.density.prior import Base, RatioSequence
from ebmscale.density.resampling import resample_systematically
from ebmscale.density.smc import anneal
from ebmscale.kernels.prior_chain import run_prior_chain
from ebmscale.model.posterior import langevin_settings, lost
from ebmscale.seeds import StreamNoise
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.stream_table import StreamTable
from ebmscale.stages.tilt import tilt, with_gain
from ebmscale.world import World


class ChainPools:
    """Two pools of chains, by stream; the held-out one is never trained on.

    What moves chains returns where they end; `fill` puts them there.

    Args:
        settings: how the prior is sampled.
        dim: Z.
        world: this process's place.
        after_step: called after every step of long chains; where it raises, nothing has changed.

    Attributes:
        tables: `pool`, that ratios are trained on, and `held_out_pool`.
    """

    def __init__(self, settings: RatioSettings, dim: int, world: World, after_step: Callable[[], None]):
        num_streams = settings.num_streams
        sizes = {"pool": settings.chains.num_chains, "held_out_pool": settings.stages.evidence_samples}
        self.tables = {name: StreamTable(num_streams, num // num_streams, dim, world) for name, num in sizes.items()}
        self._chains, self._seed = settings.chains, settings.seed
        self._bound, self._dtype = settings.chain_bound, settings.chain_dtype
        self._world, self._after_step = world, after_step
        self._num_restarted = 0

    @property
    def training(self) -> StreamTable:
        """The chains that ratios are trained on."""
        return self.tables["pool"]

    @property
    def held_out(self) -> StreamTable:
        """The chains that evidence is measured on."""
        return self.tables["held_out_pool"]

    @contextmanager
    def undone_if_stopped(self) -> Iterator[None]:
        """What a measurement of evidence inside changed is taken back where a chain is stopped."""
        held_out = self.held_out.z
        try:
            yield
        except BaseException:
            self.held_out.z = held_out
            raise

    def begin(self, base: Base, position: int) -> None:
        """Puts all chains at draws of p_0."""
        self.fill(
            {n: self.base_draw(base, f"{n}-start", table.row_streams, position) for n, table in self.tables.items()}
        )

    def fill(self, chains: Mapping[str, Tensor]) -> None:
        """Puts the chains of pools at latents (O * N, Z)."""
        for name, z in chains.items():
            self.tables[name].fill(z)

    def base_draw(self, base: Base, purpose: str, streams: Tensor, position: int) -> Tensor:
        """Draws of p_0 (B, Z) for rows of the given streams (B,)."""
        noise = StreamNoise(self._seed, purpose, position, streams, self._world.device)
        return base.from_noise(noise.normal(base.dim))

    def take_restarted(self) -> int:
        """How many of this rank's chains diverged and began anew since the last call."""
        number, self._num_restarted = self._num_restarted, 0
        return number

    def equilibrated(self, prior: RatioSequence, position: int) -> dict[str, Tensor]:
        """The chains of every pool under a prior with one more ratio."""
        return {name: self._equilibrated(name, prior, position) for name in self.tables}

    def _equilibrated(self, name: str, prior: RatioSequence, position: int) -> Tensor:
        """The chains of a pool under a new prior, by Langevin steps or by sequential Monte Carlo."""
        if self._chains.equilibrate == "smc":
            return self._annealed(name, prior, position)
        steps = self._chains.equilibrate_steps
        return self.moved(name, prior, position, steps, purpose="equilibrate", long=True)[0]

    def tilted(
        self, prior: RatioSequence, weights: dict[str, Tensor], posterior_mean: float, position: int
    ) -> tuple[RatioSequence, dict[str, Tensor], float]:
        """The prior with one more ratio as strong as its chains bear, their ends, and the gain (collective).

        See `stages.tilt`; the chains of all pools find the gain together.
        """
        tables, num_steps = self.tables.values(), self._chains.equilibrate_steps
        noise = torch.cat(
            [
                StreamNoise(self._seed, f"tilt-{name}", position, table.row_streams, self._world.device).normal(
                    num_steps, prior.base.dim
                )
                for name, table in self.tables.items()
            ]
        )
        gains, z = tilt(
            prior,
            weights,
            posterior_mean,
            torch.cat([table.rows for table in tables]),
            noise,
            langevin_settings(self._chains, num_steps),
            self._world,
            self._after_step,
            self._dtype,
        )
        last = gains[-max(num_steps // 4, 1) :]
        gain = sum(last) / len(last)
        parts = z.split([len(table.rows) for table in tables])
        chains = {name: self._kept(part, name, prior, position) for name, part in zip(self.tables, parts, strict=True)}
        return with_gain(prior, weights, gain), chains, gain

    def _annealed(self, name: str, prior: RatioSequence, position: int) -> Tensor:
        """The chains of a pool, samples of p_{k-1}, brought to the new prior p_k along rungs p_{k-1} r_k^t.

        Langevin steps alone leave the chains in whichever modes they started near, and an error in how many there
        are in a mode is then invisible to all later ratios. Streams are groups that never mix.
        """
        table = self.tables[name]

        def noise(leg: int, rung: int) -> StreamNoise:
            purpose = f"anneal-{name}-{rung}"
            return StreamNoise(self._seed, purpose, position, table.row_streams, self._world.device)

        self._after_step()
        walked = anneal(stage_legs(prior)[-1:], table.z, noise, Annealing())
        placed = noise(0, -1).uniform().view(table.z.shape[:2])[:, 0]
        chosen = resample_systematically(walked.log_weights, placed, table.z.shape[1])
        rows = walked.z.gather(1, chosen[:, :, None].expand(-1, -1, prior.base.dim)).flatten(0, 1)
        settings = langevin_settings(self._chains, self._chains.equilibrate_steps)
        steps = noise(0, -2).normal(settings.num_steps, prior.base.dim)
        rows, _ = run_prior_chain(prior, rows, steps, settings, self._after_step, self._dtype)
        return self._kept(rows, name, prior, position)

    def moved(
        self,
        name: str,
        prior: RatioSequence,
        position: int,
        num_steps: int,
        purpose: str = "prior",
        long: bool = False,
    ) -> tuple[Tensor, ChainTrace]:
        """The chains (O * N, Z) of a pool after steps under a prior, from where they are or anew from p_0."""
        table = self.tables[name]
        noise = StreamNoise(self._seed, f"{purpose}-{name}", position, table.row_streams, self._world.device)
        z = table.rows
        if self._chains.kind == "short_run":
            z = prior.base.from_noise(noise.normal(prior.base.dim))
        settings = langevin_settings(self._chains, num_steps)
        chain_noise = noise.normal(num_steps, prior.base.dim)
        after_step = self._after_step if long else lambda: None
        z, trace = run_prior_chain(prior, z, chain_noise, settings, after_step, self._dtype)
        return self._kept(z, name, prior, position), trace

    def _kept(self, z: Tensor, name: str, prior: RatioSequence, position: int) -> Tensor:
        """The chains, those that diverged replaced by draws from p_0 and counted."""
        gone = lost(z, self._bound)
        if not bool(gone.any()):
            return z
        self._num_restarted += int(gone.sum())
        fresh = self.base_draw(prior.base, f"restart-{name}", self.tables[name].row_streams, position)
        return torch.where(gone[:, None], fresh, z)
