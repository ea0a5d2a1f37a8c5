"""The ratio sequence in training: current ratio, frozen stages, prior chains, and the scheduler's decisions.

`StageTrainer` knows nothing of images: it is fed posterior latents, wherever they come from.

Shapes: B rows of this rank, Z latent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ebmscale.density.evidence import Evidence
from ebmscale.density.langevin import ChainTrace
from ebmscale.density.losses import n2ce
from ebmscale.density.prior import RatioSequence, stacked_stages
from ebmscale.density.schedule import Advance, Decision, Finish, RollBack, StageState, decide, is_settled, rate_factor
from ebmscale.model.sampler import Agreement
from ebmscale.model.saved_part import SavedPart
from ebmscale.networks import set_bound
from ebmscale.seeds import StreamNoise
from ebmscale.stages.beginning import bound_for, next_weights
from ebmscale.stages.best_weights import BestWeights
from ebmscale.stages.held_out import HeldOutSides, check, judge, memorised, ratio_of, rows_of_all, said
from ebmscale.stages.latents import Latents
from ebmscale.stages.negatives import Freeze, NegativeSource
from ebmscale.stages.pay import Pay
from ebmscale.stages.ratio_engine import RatioEngine
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.ratio_updates import RatioReport, RatioUpdates
from ebmscale.stages.record import Memorised
from ebmscale.world import World

CHECKED = 8192
"""This rank's samples of p_k that are compared with posteriors at a freeze, at most."""


class StageTrainer:
    """Trains ratio f_k against p_{k-1} on posterior latents, and carries out the scheduler's decisions.

    A `RatioTrainer`.

    Args:
        engine: of the ratio network.
        prior: p_{k-1}; its base is p_0.
        negatives: samples of p_{k-1}.
        settings: how ratios are trained and when a stage moves on.
        world: this process's place.

    Attributes:
        best: the weights of the stage's least held-out loss.
        checks: of samples of p_0 and of p_k against held-out posteriors, by stage, where the last decision froze one.
        memorised: the losses at the last evidence on what updates use and on what they do not. None where the source
            cannot tell.
    """

    def __init__(
        self,
        engine: RatioEngine,
        prior: RatioSequence,
        negatives: NegativeSource,
        settings: RatioSettings,
        world: World,
    ):
        self.engine = engine
        self.prior = prior
        self.negatives = negatives
        self.latents = Latents(prior.base, settings, world, negatives.tables)
        self.state = StageState(started=settings.stages.start_samples, finished=settings.stages.max_stages == 0)
        self.criteria = settings.criteria
        self.best = BestWeights(engine, world)
        self.checks: dict[int, Agreement] = {}
        self.memorised: Memorised | None = None
        self._updates = RatioUpdates(engine, settings, world)
        self._pay = Pay(settings.stages, settings.ends_at)
        self.settings, self._world = settings, world
        self._held_out = torch.zeros(0, prior.base.dim, device=world.device)
        self._chosen: dict[str, Tensor] | None = None

    @property
    def parts(self) -> dict[str, SavedPart]:
        """See `RatioTrainer.parts`."""
        return {"ratio": self.engine, "best": self.best, "chains": self.latents, **self.negatives.parts}

    @property
    def trace(self) -> ChainTrace | None:
        """See `RatioTrainer.trace`."""
        return self.negatives.trace

    @property
    def frozen(self) -> RatioSequence:
        """The prior: all of its ratios are frozen."""
        return self.prior

    @property
    def is_first_stage(self) -> bool:
        """Whether the prior is still p_0, whose samples are exact draws."""
        return self.prior.num_stages == 0

    def trains_at(self, position: int) -> bool:
        """See `RatioTrainer.trains_at`."""
        return not self.state.finished and self.latents.are_ready(position)

    def observe(self, posterior: Tensor, streams: Tensor) -> None:
        """See `Latents.observe`."""
        self.latents.observe(posterior, streams)

    def advance_prior(self, position: int) -> None:
        """Moves the prior chains that training draws from, where there are chains."""
        self.negatives.advance(self.prior, position)

    def fit_base(self, position: int) -> None:
        """See `Latents.fit_base`."""
        self.prior = self.prior.on_base(self.latents.fit_base())
        self.negatives.begin(self.prior, position)

    def update(self, position: int, rate_scale: float = 1.0, limit: float = math.inf) -> RatioReport | None:
        """`updates_per_batch` updates of the current ratio; see `RatioTrainer.update`."""
        if self.latents.is_base_due(position):
            self.fit_base(position)
        if self.latents.fits_base or not self.trains_at(position):
            return None
        rate = self.settings.optimizer.rate * rate_scale * rate_factor(self.state, self.criteria, position)
        return self._updates.make(position, self._losses, rate, limit)

    def _losses(self, noise: StreamNoise, streams: Tensor) -> Iterator[Tensor]:
        """See `ratio_updates.Losses`."""
        num_updates, magnification = self.settings.updates_per_batch, self.settings.stages.magnification
        q = self.prior.coordinates(self.latents.draw_posteriors(noise, streams, num_updates))
        p, weights = self.negatives.draw(self.prior, noise, streams, num_updates)
        for update in range(num_updates):
            both = torch.cat([q[:, update], p[:, update]])
            f_q, f_p = self._updates.log_ratio(both).split(len(streams))
            yield n2ce(f_q, f_p, magnification, weights[:, update])

    def measured_at(self, position: int) -> int:
        """See `RatioTrainer.measured_at`."""
        same = self.settings.lasts_as_it_pays and self.negatives.judges_gain and not self.state.finished
        return self.state.started if same and not is_settled(self.state, self.criteria, position) else position

    def evidence(self, z_held_out: Tensor, position: int) -> Evidence:
        """Held-out evidence of the current ratio, the same on every rank (collective).

        At the end of a stage it is that of the ratio to be frozen. The weights of the least held-out loss and the
        last ones are compared on the same samples of now, since the target of the earlier loss may have moved.

        Args:
            z_held_out: (B, Z) this rank's held-out posterior latents.
            position: `samples_seen`.
        """
        fresh = self.negatives.held_out(self.prior, self.measured_at(position))
        sides = HeldOutSides(self.prior.coordinates(z_held_out), fresh)
        how = self.settings.num_streams, self._world, self._updates.grad_norm, self.negatives.judges_gain
        evidence, unseen = judge(self._updates.log_ratio, sides, *how)
        self._held_out = rows_of_all(sides.q, self.settings.num_streams, self._world)
        train = self.prior.coordinates(self._updates.like_an_update(position, self.latents.draw_posteriors))
        self.memorised = memorised(self._updates.log_ratio, self.negatives.used(), train, unseen, self._world)
        if self.best.loss is not None and is_settled(self.state, self.criteria, position):
            weights = self.best.whole()
            of_best, _ = judge(ratio_of(self.prior.network, weights), sides, *how)
            if of_best.loss < evidence.loss:
                evidence, self._chosen = of_best, weights
        else:
            self.best.offer(evidence.loss, position)
        if self.state.settling_since is None and math.isfinite(evidence.loss):
            set_bound(self.engine.module, bound_for(evidence.loss))
        return evidence

    def decide(self, evidence: Evidence, position: int) -> Decision:
        """The scheduler's decision on this evidence, carried out.

        Where the source judges a ratio at its gain, a settled stage is judged by that bound.
        """
        freeze, worth, self.checks = None, None, {}
        if self.settings.lasts_as_it_pays:
            self._pay.observe(self.state, evidence, position)
            worth = self._pay.worth(self.state, position)
        if self.negatives.judges_gain and is_settled(self.state, self.criteria, position):
            freeze = self.next_prior(position)
            if freeze.bound is not None:
                evidence = replace(evidence, kl_bound=freeze.bound[0], kl_bound_error=freeze.bound[1])
        decision, state = decide(self.state, evidence, self.criteria, position, worth)
        if isinstance(decision, Advance) or (isinstance(decision, Finish) and decision.freeze):
            freeze = freeze or self.next_prior(position)
            if worth is not None:
                ends = self._pay.ended(self.state, evidence, freeze.strength.gain, self.negatives.passes, position)
                if ends is not None and isinstance(decision, Advance):
                    decision, state = Finish(ends, freeze=True), replace(state, stage=self.state.stage, finished=True)
            self._accept(freeze)
            words = f"{self._how_frozen(freeze)}{said(self.prior.num_stages, self.checks)}"
            decision = replace(decision, reason=f"{decision.reason}{words}")
        if (state.stage, state.started, state.finished) != (self.state.stage, self.state.started, self.state.finished):
            self.best.clear()
            self._pay.restart()
        self.state, self._chosen = state, None
        if isinstance(decision, (Advance, RollBack)):
            spread, tries = self.negatives.spread(), (state.stage, state.rollbacks)
            self.engine.reset(next_weights(self.prior, spread, self.settings.seed, *tries))
        return decision

    def _accept(self, freeze: Freeze) -> None:
        """Goes on to the prior with the new ratio, and checks its samples (collective)."""
        if self.is_first_stage:
            self._check()
        self.prior = freeze.prior
        freeze.keep()
        self._check()

    def _check(self) -> None:
        if len(self._held_out) > 1:
            found = check(self.prior, self.shown(CHECKED), self._held_out, self._world)
            self.checks[self.prior.num_stages] = found

    def _how_frozen(self, freeze: Freeze) -> str:
        """Which ratio is frozen where it is not the last one at its own strength, in words."""
        gain, power, k = freeze.strength.gain, freeze.strength.power, self.prior.num_stages
        words = f"; frozen at {gain:.2f} of its strength" if gain != 1 else ""
        words += f", with p_{k - 1} to the power {power:.2f}" if power != 1 else ""
        return f"{words}; weights of {self.best.position:,} samples" if self._chosen is not None else words

    def next_prior(self, position: int) -> Freeze:
        """The prior with the current ratio (collective). Nothing is changed."""
        weights = self._chosen or self.engine.full_weights()
        return self.negatives.freeze(self.prior, weights, self._held_out, position)

    def shown(self, num: int) -> Tensor:
        """See `RatioTrainer.shown`."""
        return self.negatives.shown(self.prior, num)

    def undone_if_stopped(self) -> AbstractContextManager[None]:
        """See `RatioTrainer.undone_if_stopped`."""
        return self.negatives.undone_if_stopped()

    def take_restarted(self) -> int:
        """See `RatioTrainer.take_restarted`."""
        return self.negatives.take_restarted()

    def shift(self, num_samples: int) -> None:
        """Sets the stage's clock on: it has trained for no longer than before, but `samples_seen` has moved."""
        since = self.state.settling_since
        self.state = replace(
            self.state,
            started=self.state.started + num_samples,
            settling_since=None if since is None else since + num_samples,
        )

    def values(self) -> dict[str, Any]:
        """See `RatioTrainer.values`."""
        return {
            "stage": asdict(self.state),
            "grad_norm": self._updates.grad_norm,
            **self.latents.values(),
            "best": self.best.values(),
            "pay": self._pay.values(),
            "negatives": self.negatives.values() or None,
        }

    def load_values(self, values: dict[str, Any]) -> None:
        """Takes what `values` gave."""
        self.state = StageState(**values["stage"])
        self._updates.grad_norm = values["grad_norm"]
        self.latents.load_values(values)
        self.best.load_values(values.get("best"))
        self._pay.load_values(values.get("pay"))
        self.negatives.load_values(values["negatives"] or {})

    def take_frozen(self, ratios: Sequence[Mapping[str, Tensor]]) -> None:
        """See `RatioTrainer.take_frozen`."""
        stacked = {name: tensor.to(self._world.device) for name, tensor in stacked_stages(ratios).items()}
        prior = RatioSequence(self.latents.base, self.prior.network, stacked)
        self.prior = prior
        self.negatives.resume(prior)
