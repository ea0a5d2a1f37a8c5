"""The baselines whose prior is live: their ratios are trained all at once, and the prior is what they are now.

`lebm` (Pang et al. 2020) trains one energy by maximum likelihood, against samples that short-run chains draw from the
prior itself at every update. `tre` (Rhodes et al. 2020) trains K ratios along a fixed bridge from p_0 to q. Buffer,
noise, engine, posterior chains and checkpoints are those of the stages.

Shapes: B rows of this rank, Z latent, K ratios.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ebmscale.density import evidence as evidence_of
from ebmscale.density.bridge import telescope_loss, waymarks
from ebmscale.density.evidence import Evidence
from ebmscale.density.losses import maximum_likelihood
from ebmscale.density.prior import RatioSequence
from ebmscale.density.schedule import Decision, Hold
from ebmscale.kernels.prior_chain import run_prior_chain
from ebmscale.model.posterior import langevin_settings
from ebmscale.networks import RatioNets
from ebmscale.seeds import StreamNoise
from ebmscale.stages.stage_trainer import RatioReport, StageTrainer


class LiveTrainer(StageTrainer):
    """Trains all ratios of the prior at once; there are no stages, and the decision is always to go on.

    Args:
        nets: the structure of the engine's module.
        kind: `lebm` or `tre`.
        arguments: of `StageTrainer`, whose `prior` gives p_0 and the structure of one ratio.
    """

    def __init__(self, nets: RatioNets, kind: str, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._nets, self._kind = nets, kind
        self._refresh()

    @property
    def frozen(self) -> RatioSequence:
        """p_0: nothing is ever frozen."""
        return self.prior.prefix(0)

    def advance_prior(self, position: int) -> None:
        """Nothing: the chains of `lebm` are part of its updates."""

    def update(self, position: int, rate_scale: float = 1.0, limit: float = math.inf) -> RatioReport | None:
        """`updates_per_batch` updates of all ratios; see `StageTrainer.update`.

        `limit` counts for `tre` alone: the loss of `lebm` is a difference of energies and has no usual size.
        """
        return super().update(position, rate_scale, limit if self._kind == "tre" else math.inf)

    def _losses(self, noise: StreamNoise, streams: Tensor) -> Iterator[Tensor]:
        """See `StageTrainer._losses`; the prior is what each update made of it."""
        for _ in range(self._stages.updates_per_batch):
            z_q = self._posterior_draws(noise, streams, 1)[:, 0]
            yield self._lebm(z_q, noise) if self._kind == "lebm" else self._tre(z_q, noise)
            self._refresh()

    def evidence(self, z_held_out: Tensor, position: int) -> Evidence:
        """Evidence of the whole log ratio log p_K - log p_0 against exact draws of p_0 (collective).

        Its KL bound is a lower bound on KL(q || p_0), and equals what the prior gains over p_0 in held-out log
        density, its normaliser estimated by importance sampling.
        """
        z_p = self.pools.base_draw(self.prior.base, "evidence", self.held_out_pool.row_streams, position)
        with torch.no_grad():
            values = [self.prior.log_ratios(z).sum(0) for z in (z_held_out, z_p)]
        f_q, f_p = (torch.cat(self._world.gather(f)) for f in values)
        return evidence_of.measure(f_q, f_p, self._grad_norm)

    def decide(self, evidence: Evidence, position: int) -> Decision:
        """To go on."""
        return Hold("the prior is live: its ratios train to the end")

    def take_frozen(self, ratios: Sequence[Mapping[str, Tensor]]) -> None:
        """See `StageTrainer.take_frozen`; the engine is restored already."""
        self._refresh()

    def _refresh(self) -> None:
        """Makes the prior what the engine's weights are now (collective)."""
        base = self.prior
        self.prior = RatioSequence(base.base, base.network, self._nets.stacked(self.engine.full_weights()))

    def _lebm(self, z_q: Tensor, noise: StreamNoise) -> Tensor:
        """The loss of energies at posterior latents (B, Z) and at the ends of short-run chains from p_0."""
        settings = langevin_settings(self._chains)
        dim = self.prior.base.dim
        first = self.prior.base.from_noise(noise.normal(dim))
        steps = noise.normal(settings.num_steps, dim)
        z_p, self.trace = run_prior_chain(self.prior, first, steps, settings, dtype=self.pools.dtype)
        f_q, f_p = self._log_ratio(torch.cat([z_q, z_p])[None])[0].split(len(z_q))
        return maximum_likelihood(f_q, f_p)

    def _tre(self, z_q: Tensor, noise: StreamNoise) -> Tensor:
        """The loss of every ratio at the waymarks above and below it."""
        z_0 = self.prior.base.from_noise(noise.normal(self.prior.base.dim))
        marks = waymarks(z_0, z_q, len(self._nets.nets))
        upper, lower = self._log_ratio(torch.cat([marks[1:], marks[:-1]], dim=1)).split(len(z_q), dim=1)
        return telescope_loss(upper, lower)
