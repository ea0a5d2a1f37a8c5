"""The ratio sequence in training: current ratio, frozen stages, prior chains, and the scheduler's decisions.

`StageTrainer` knows nothing of images: it is fed posterior latents, wherever they come from.

Shapes: B rows of this rank, Z latent.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ebmscale.density import evidence as evidence_of
from ebmscale.density.evidence import Evidence
from ebmscale.density.langevin import ChainTrace
from ebmscale.density.losses import n2ce
from ebmscale.density.prior import RatioSequence
from ebmscale.density.schedule import Advance, Decision, Finish, RollBack, StageState, decide, rate_factor
from ebmscale.model.saved_part import SavedPart
from ebmscale.networks import initialise
from ebmscale.seeds import StreamNoise, torch_generator
from ebmscale.stages.latents import Latents
from ebmscale.stages.ratio_engine import RatioEngine
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.ratio_updates import RatioReport, RatioUpdates
from ebmscale.world import World


class StageTrainer:
    """Trains ratio f_k against p_{k-1} on posterior latents, and carries out the scheduler's decisions.

    A `RatioTrainer`.

    Args:
        engine: of the ratio network.
        prior: p_{k-1}; its base is p_0.
        settings: how ratios are trained, when a stage moves on, and how the prior is sampled.
        world: this process's place.
        after_step: called after every step of the long chains, those of `evidence` and `decide`; where it raises,
            nothing has changed.
    """

    def __init__(
        self,
        engine: RatioEngine,
        prior: RatioSequence,
        settings: RatioSettings,
        world: World,
        after_step: Callable[[], None] = lambda: None,
    ):
        self.engine = engine
        self.prior = prior
        self.latents = Latents(prior.base, settings, world, after_step)
        self.state = StageState(started=settings.stages.start_samples, finished=settings.stages.max_stages == 0)
        self.criteria = settings.criteria
        self.trace: ChainTrace | None = None
        self._updates = RatioUpdates(engine, settings, world)
        self.settings, self._world = settings, world
        self._posterior_mean = 0.0

    @property
    def parts(self) -> dict[str, SavedPart]:
        """See `RatioTrainer.parts`."""
        return {"ratio": self.engine, "chains": self.latents}

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
        """Moves the prior chains that training draws from; p_0 needs none."""
        if not self.is_first_stage:
            pools, num_steps = self.latents.pools, self.settings.chains.num_steps
            z, self.trace = pools.moved("pool", self.prior, position, num_steps)
            pools.training.fill(z)

    def fit_base(self, position: int) -> None:
        """See `Latents.fit_base`."""
        self.prior = self.prior.on_base(self.latents.fit_base(position))

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
        num_updates = self.settings.stages.updates_per_batch
        z_q = self.latents.draw_posteriors(noise, streams, num_updates)
        z_p = (
            self.prior.base.from_noise(noise.normal(num_updates, self.prior.base.dim))
            if self.is_first_stage
            else self.latents.pools.training.draw(noise.uniform(num_updates), streams)
        )
        for of_q, of_p in zip(z_q.unbind(1), z_p.unbind(1), strict=True):
            f_q, f_p = self._updates.log_ratio(self.prior, torch.cat([of_q, of_p])).split(len(streams))
            yield n2ce(f_q, f_p, self.settings.stages.magnification)

    def evidence(self, z_held_out: Tensor, position: int) -> Evidence:
        """Held-out evidence of the current ratio, the same on every rank (collective).

        Args:
            z_held_out: (B, Z) this rank's held-out posterior latents.
            position: `samples_seen`.
        """
        pools = self.latents.pools
        if self.is_first_stage:
            z_p = pools.base_draw(self.prior.base, "evidence", pools.held_out.row_streams, position)
        else:
            num_steps = self.settings.chains.num_steps
            z_p, _ = pools.moved("held_out_pool", self.prior, position, num_steps, long=True)
            pools.held_out.fill(z_p)
        with torch.no_grad():
            values = [self._updates.log_ratio(self.prior, z) for z in (z_held_out, z_p)]
        f_q, f_p = (torch.cat(self._world.gather(f)) for f in values)
        self._posterior_mean = float(f_q.double().mean())
        return evidence_of.measure(f_q, f_p, self._updates.grad_norm)

    def decide(self, evidence: Evidence, position: int) -> Decision:
        """The scheduler's decision on this evidence, carried out."""
        decision, state = decide(self.state, evidence, self.criteria, position)
        if isinstance(decision, Advance) or (isinstance(decision, Finish) and decision.freeze):
            self.prior, chains, gain = self.next_prior(position)
            if gain != 1:
                decision = replace(decision, reason=f"{decision.reason}; frozen at {gain:.2f} of its strength")
            self.latents.pools.fill(chains)
        self.state = state
        if isinstance(decision, (Advance, RollBack)):
            self.engine.reset(self._initial_weights())
        return decision

    def next_prior(self, position: int) -> tuple[RatioSequence, dict[str, Tensor], float]:
        """The prior with the current ratio, every pool's chains brought to it, and the ratio's gain (collective).

        Nothing is changed.
        """
        weights, pools = self.engine.full_weights(), self.latents.pools
        if self.settings.chains.equilibrate == "tilt":
            return pools.tilted(self.prior, weights, self._posterior_mean, position)
        prior = self.prior.append(weights)
        return prior, pools.equilibrated(prior, position), 1.0

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
        of_stage = asdict(self.state)
        return {"stage": of_stage, "grad_norm": self._updates.grad_norm, "fits_base": self.latents.fits_base}

    def load_values(self, values: dict[str, Any]) -> None:
        """Takes what `values` gave."""
        self.state = StageState(**values["stage"])
        self._updates.grad_norm = values["grad_norm"]
        self.latents.fits_base = values.get("fits_base", False)

    def take_frozen(self, ratios: Sequence[Mapping[str, Tensor]]) -> None:
        """See `RatioTrainer.take_frozen`."""
        prior = self.prior.prefix(0).on_base(self.latents.base)
        for weights in ratios:
            prior = prior.append({name: weight.to(self._world.device) for name, weight in weights.items()})
        self.prior = prior

    def _initial_weights(self) -> dict[str, Tensor]:
        """Of the next ratio, or of the next try of this one."""
        network = copy.deepcopy(self.prior.network)
        initialise(
            network, torch_generator(self.settings.seed, "ratio-weights", self.state.stage, self.state.rollbacks)
        )
        return network.state_dict()
