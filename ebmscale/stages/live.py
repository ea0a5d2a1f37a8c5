"""The baselines whose prior is live: their ratios are trained all at once, and the prior is what they are now.

`lebm` (Pang et al. 2020) trains one energy by maximum likelihood, against samples that short-run chains draw from the
prior itself at every update. `tre` (Rhodes et al. 2020) trains K ratios along a fixed bridge from p_0 to q. Buffer,
noise, engine, posterior chains and checkpoints are those of the stages.

Shapes: B rows of this rank, Z latent, K ratios.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ebmscale.density import evidence as evidence_of
from ebmscale.density.bridge import telescope_loss, waymarks
from ebmscale.density.evidence import Evidence
from ebmscale.density.langevin import ChainTrace
from ebmscale.density.losses import maximum_likelihood
from ebmscale.density.prior import RatioSequence
from ebmscale.density.schedule import Decision, Hold, StageState
from ebmscale.kernels.prior_chain import run_prior_chain
from ebmscale.model.posterior import langevin_settings
from ebmscale.model.sampler import Agreement
from ebmscale.model.saved_part import SavedPart
from ebmscale.networks import RatioNets
from ebmscale.seeds import StreamNoise
from ebmscale.stages.chain_negatives import ChainNegatives
from ebmscale.stages.latents import Latents
from ebmscale.stages.ratio_engine import RatioEngine
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.ratio_updates import RatioReport, RatioUpdates
from ebmscale.stages.record import Memorised
from ebmscale.world import World

LiveKind = Literal["lebm", "tre"]


class LiveTrainer:
    """Trains all ratios of the prior at once; there are no stages, and the decision is always to continue.

    A `RatioTrainer`.

    Args:
        engine: of the networks, whose module has the structure of `nets`.
        nets: the structure.
        kind: `lebm` or `tre`.
        prior: gives p_0 and the structure of one ratio.
        settings: how ratios are trained and the prior is sampled.
        world: this process's place.
        after_step: called after every step of long chains.
    """

    def __init__(
        self,
        engine: RatioEngine,
        nets: RatioNets,
        kind: LiveKind,
        prior: RatioSequence,
        settings: RatioSettings,
        world: World,
        after_step: Callable[[], None] = lambda: None,
    ):
        self.engine = engine
        self.prior = prior
        self._negatives = ChainNegatives(settings, prior, world, after_step)
        self.latents = Latents(prior.base, settings, world, self._negatives.tables)
        self.state = StageState(started=settings.stages.start_samples)
        self._trace: ChainTrace | None = None
        self.checks: dict[int, Agreement] = {}
        self.memorised: Memorised | None = None
        self._nets, self._kind = nets, kind
        self._updates = RatioUpdates(engine, settings, world)
        self.settings, self._world = settings, world
        self._refresh()

    @property
    def parts(self) -> dict[str, SavedPart]:
        """See `RatioTrainer.parts`."""
        return {"ratio": self.engine, "chains": self.latents}

    @property
    def trace(self) -> ChainTrace | None:
        """See `RatioTrainer.trace`."""
        return self._trace

    @property
    def frozen(self) -> RatioSequence:
        """p_0: nothing is ever frozen."""
        return self.prior.prefix(0)

    def trains_at(self, position: int) -> bool:
        """See `RatioTrainer.trains_at`."""
        return self.latents.are_ready(position)

    def observe(self, posterior: Tensor, streams: Tensor) -> None:
        """See `Latents.observe`."""
        self.latents.observe(posterior, streams)

    def advance_prior(self, position: int) -> None:
        """Nothing: the chains of `lebm` are part of its updates."""

    def fit_base(self, position: int) -> None:
        """See `Latents.fit_base`."""
        self.prior = self.prior.on_base(self.latents.fit_base())
        self._negatives.begin(self.frozen, position)

    def update(self, position: int, rate_scale: float = 1.0, limit: float = math.inf) -> RatioReport | None:
        """`updates_per_batch` updates of all ratios; see `RatioTrainer.update`.

        `limit` counts for `tre` alone: the loss of `lebm` is a difference of energies and has no usual size.
        """
        if self.latents.is_base_due(position):
            self.fit_base(position)
        if self.latents.fits_base or not self.trains_at(position):
            return None
        rate = self.settings.optimizer.rate * rate_scale
        return self._updates.make(position, self._losses, rate, limit if self._kind == "tre" else math.inf)

    def _losses(self, noise: StreamNoise, streams: Tensor) -> Iterator[Tensor]:
        """See `ratio_updates.Losses`; the prior is what each update made of it."""
        for _ in range(self.settings.updates_per_batch):
            z_q = self.latents.draw_posteriors(noise, streams, 1)[:, 0]
            yield self._lebm(z_q, noise) if self._kind == "lebm" else self._tre(z_q, noise)
            self._refresh()

    def measured_at(self, position: int) -> int:
        """See `RatioTrainer.measured_at`."""
        return position

    def evidence(self, z_held_out: Tensor, position: int) -> Evidence:
        """Evidence of the whole log ratio log p_K - log p_0 against exact draws of p_0 (collective).

        Its KL bound is a lower bound on KL(q || p_0), and equals what the prior gains over p_0 in held-out log
        density, its normaliser estimated by importance sampling.
        """
        pools = self._negatives.pools
        z_p = pools.base_draw(self.prior.base, "evidence", pools.held_out.row_streams, position)
        with torch.no_grad():
            values = [self.prior.log_ratios(z).sum(0) for z in (z_held_out, z_p)]
        f_q, f_p = (torch.cat(self._world.gather(f)) for f in values)
        return evidence_of.measure(f_q, f_p, self._updates.grad_norm)

    def decide(self, evidence: Evidence, position: int) -> Decision:
        """To continue."""
        return Hold("the prior is live: its ratios train to the end")

    def shown(self, num: int) -> Tensor:
        """See `RatioTrainer.shown`."""
        return self._negatives.shown(self.prior, num)

    def undone_if_stopped(self) -> AbstractContextManager[None]:
        """See `RatioTrainer.undone_if_stopped`."""
        return self._negatives.undone_if_stopped()

    def take_restarted(self) -> int:
        """See `RatioTrainer.take_restarted`."""
        return self._negatives.take_restarted()

    def shift(self, num_samples: int) -> None:
        """See `RatioTrainer.shift`."""
        self.state = replace(self.state, started=self.state.started + num_samples)

    def values(self) -> dict[str, Any]:
        """See `RatioTrainer.values`."""
        return {"stage": asdict(self.state), "grad_norm": self._updates.grad_norm, **self.latents.values()}

    def load_values(self, values: dict[str, Any]) -> None:
        """Takes what `values` gave."""
        self.state = StageState(**values["stage"])
        self._updates.grad_norm = values["grad_norm"]
        self.latents.load_values(values)

    def take_frozen(self, ratios: Sequence[Mapping[str, Tensor]]) -> None:
        """Makes the prior anew from the base and the engine, which is restored already; nothing is frozen."""
        self._refresh()

    def _refresh(self) -> None:
        """Makes the prior what the engine's weights are now (collective)."""
        stacked = self._nets.stacked(self.engine.full_weights())
        self.prior = RatioSequence(self.latents.base, self.prior.network, stacked)

    def _lebm(self, z_q: Tensor, noise: StreamNoise) -> Tensor:
        """The loss of energies at posterior latents (B, Z) and at the ends of short-run chains from p_0."""
        settings = langevin_settings(self.settings.chains)
        dim = self.prior.base.dim
        first = self.prior.base.from_noise(noise.normal(dim))
        steps = noise.normal(settings.num_steps, dim)
        dtype = self.settings.chain_dtype
        z_p, self._trace = run_prior_chain(self.prior, first, steps, settings, dtype=dtype)
        points = self.prior.coordinates(torch.cat([z_q, z_p]))
        f_q, f_p = self._updates.log_ratio(points[None])[0].split(len(z_q))
        return maximum_likelihood(f_q, f_p)

    def _tre(self, z_q: Tensor, noise: StreamNoise) -> Tensor:
        """The loss of every ratio at the waymarks above and below it."""
        z_0 = self.prior.base.from_noise(noise.normal(self.prior.base.dim))
        marks = waymarks(z_0, z_q, len(self._nets.nets))
        both = self._updates.log_ratio(self.prior.coordinates(torch.cat([marks[1:], marks[:-1]], dim=1)))
        upper, lower = both.split(len(z_q), dim=1)
        return telescope_loss(upper, lower)
