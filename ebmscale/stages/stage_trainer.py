"""The ratio sequence in training: current ratio, frozen stages, prior chains, and the scheduler's decisions.

`StageTrainer` knows nothing of images: it is fed posterior latents, wherever they come from.

Shapes: B rows of this rank, R ratio updates of a batch, Z latent, N chains.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ebmscale.config import PriorBlock, RatioOptimizerBlock, StagesBlock
from ebmscale.density import evidence as evidence_of
from ebmscale.density.bases import MomentBase
from ebmscale.density.evidence import Evidence
from ebmscale.density.langevin import ChainTrace
from ebmscale.density.losses import n2ce, nan_above_limit
from ebmscale.density.prior import RatioSequence
from ebmscale.density.schedule import Advance, Criteria, Decision, Finish, RollBack, StageState, decide, rate_factor
from ebmscale.errors import ConfigError, DivergenceError
from ebmscale.model.pieces import Piece, Span, piece, share_of
from ebmscale.model.prior_base import BASE, base_from, base_tensors
from ebmscale.networks import initialise
from ebmscale.seeds import StreamNoise, torch_generator
from ebmscale.stages.chain_pools import ChainPools
from ebmscale.stages.ratio_engine import RatioEngine
from ebmscale.stages.stream_table import StreamTable
from ebmscale.world import World, owned_rows


@dataclass(frozen=True)
class RatioReport:
    """What the ratio updates of one batch gave; `bad`: an update was left out (see `training.guard`)."""

    loss: Tensor
    grad_norm: float
    bad: bool


class StageTrainer:
    """Trains ratio f_k against p_{k-1} on posterior latents, and carries out the scheduler's decisions.

    Args:
        engine: of the ratio network.
        prior: p_{k-1}; its base is p_0.
        stages: how a ratio is trained and when a stage moves on.
        chains: of the prior.
        optimizer: of the ratio network.
        world: this process's place.
        seed: the run's seed.
        num_streams: S.
        target_moves: whether a generator is training beside it (see `Criteria`).
        ends_at: `samples_seen` at the run's end (see `Criteria`).
        chain_bound: root mean square of a latent beyond which a chain starts again from p_0.
        chain_dtype: in which prior chains evaluate the ratio networks (default: their own).
        after_step: called after every step of the long chains, those of `evidence` and `decide`; where it raises,
            nothing has changed.
        amortised: whether posteriors come as Gaussians and not as samples of them (see `observe`): then no latent is
            trained on twice, and the ratio cannot learn the buffer by heart.
    """

    def __init__(
        self,
        engine: RatioEngine,
        prior: RatioSequence,
        stages: StagesBlock,
        chains: PriorBlock,
        optimizer: RatioOptimizerBlock,
        world: World,
        seed: int,
        num_streams: int,
        target_moves: bool = True,
        ends_at: int | None = None,
        chain_bound: float = math.inf,
        chain_dtype: torch.dtype | None = None,
        after_step: Callable[[], None] = lambda: None,
        amortised: bool = False,
    ):
        self.engine = engine
        self.prior = prior
        self.state = StageState(started=stages.start_samples, finished=stages.max_stages == 0)
        self.criteria = Criteria(
            target_moves=target_moves,
            ends_at=ends_at,
            **stages.model_dump(include=set(Criteria.__dataclass_fields__)),
        )
        self._stages = stages
        self._chains = chains
        self._rate = optimizer.rate
        self._world = world
        self._seed = seed
        self._num_streams = num_streams
        self._grad_norm = self._posterior_mean = 0.0
        self._amortised, self._fits_base = amortised, chains.base == "moments"
        dim = prior.base.dim
        width = 2 * dim if amortised else dim
        self.buffer = StreamTable(num_streams, stages.buffer_samples // num_streams, width, world)
        self.pools = ChainPools(
            chains, stages.evidence_samples, dim, world, seed, num_streams, chain_bound, chain_dtype, after_step
        )
        self.trace: ChainTrace | None = None
        self.pools.begin(prior.base, 0)

    @property
    def pool(self) -> StreamTable:
        """The chains of the prior that ratios are trained on."""
        return self.pools.tables["pool"]

    @property
    def held_out_pool(self) -> StreamTable:
        """The chains of the prior that evidence is measured on."""
        return self.pools.tables["held_out_pool"]

    @property
    def _tables(self) -> dict[str, StreamTable]:
        """What is kept by stream."""
        return {"buffer": self.buffer, **self.pools.tables}

    @property
    def frozen(self) -> RatioSequence:
        """The base with the ratios that are frozen, which checkpoints keep apart."""
        return self.prior

    def trains_at(self, position: int) -> bool:
        """Whether a ratio is in training at `samples_seen` (collective until there is something to train on)."""
        begun = position >= self._stages.start_samples and not self.state.finished
        return begun and self.buffer.is_ready()

    @property
    def is_first_stage(self) -> bool:
        """Whether the prior is still p_0, whose samples are exact draws."""
        return self.prior.num_stages == 0

    def observe(self, posterior: Tensor, streams: Tensor) -> None:
        """Adds posteriors of the given streams (B,) to the buffer that ratios are trained on.

        Args:
            posterior: latents (B, Z); of an amortised one means and standard deviations (B, 2 Z).
            streams: of the rows.
        """
        self.buffer.add(posterior, streams)

    def advance_prior(self, position: int) -> None:
        """Moves the prior chains that training draws from; p_0 needs none."""
        if not self.is_first_stage:
            z, self.trace = self.pools.moved("pool", self.prior, position, self._chains.num_steps)
            self.pool.fill(z)

    def take_restarted(self) -> int:
        """How many of this rank's prior chains diverged and began anew since the last call."""
        return self.pools.take_restarted()

    def update(self, position: int, rate_scale: float = 1.0, limit: float = math.inf) -> RatioReport | None:
        """`updates_per_batch` updates of the current ratio; None when there is nothing to train yet or any more.

        Args:
            position: `samples_seen` at the start of the batch.
            rate_scale: factor of the learning rate.
            limit: an update whose loss on any rank is above it is left out, as one that is not finite.
        """
        if self._fits_base and position >= self._stages.start_samples and self.buffer.is_full():
            self._fit_base(position)
        if self._fits_base or not self.trains_at(position):
            return None
        rows = owned_rows(self._stages.batch_size, self._num_streams, self._world)
        streams = rows % self._num_streams
        noise = StreamNoise(self._seed, "ratio", position, streams, self._world.device)
        share = len(rows) * self._world.size / self._stages.batch_size  # makes the ranks' average the global mean
        rate = self._rate * rate_scale * rate_factor(self.state, self.criteria, position)
        total, bad = torch.zeros((), device=self._world.device), False
        for loss in self._losses(noise, streams):
            total += loss.detach()
            self.engine.backward(nan_above_limit(loss, loss, limit) * share)
            norm = self.engine.step(rate)
            if math.isfinite(norm):
                self._grad_norm = norm
            else:
                bad = True
        return RatioReport(total / self._stages.updates_per_batch, self._grad_norm, bad)

    def _losses(self, noise: StreamNoise, streams: Tensor) -> Iterator[Tensor]:
        """The loss of every update.

        Each is computed when it is asked for, so under the weights that the update before it left.
        """
        num_updates = self._stages.updates_per_batch
        z_q = self._posterior_draws(noise, streams, num_updates)
        z_p = (
            self.prior.base.from_noise(noise.normal(num_updates, self.prior.base.dim))
            if self.is_first_stage
            else self.pool.draw(noise.uniform(num_updates), streams)
        )
        for of_q, of_p in zip(z_q.unbind(1), z_p.unbind(1), strict=True):
            f_q, f_p = self._log_ratio(torch.cat([of_q, of_p])).split(len(streams))
            yield n2ce(f_q, f_p, self._stages.magnification)

    def _posterior_draws(self, noise: StreamNoise, streams: Tensor, num: int) -> Tensor:
        """Posterior latents (B, `num`, Z) for the ratio updates' rows of the given streams."""
        drawn = self.buffer.draw(noise.uniform(num), streams)
        if not self._amortised:
            return drawn
        mean, std = drawn.chunk(2, dim=-1)
        return mean + std * noise.normal(num, self.prior.base.dim)

    def _fit_base(self, position: int) -> None:
        """Gives the base the moments of the posteriors in the buffer, and begins all chains on it (collective).

        The first rank computes them from the whole buffer in the order of the streams, so that they are the same
        whatever the number of ranks.
        """
        tables, size = self._world.gather(self.buffer.z), self._world.size
        rows = torch.cat([tables[stream % size][stream // size] for stream in range(self._num_streams)])
        mean, std = rows.chunk(2, dim=1) if self._amortised else (rows, torch.zeros_like(rows))
        found: dict[str, Tensor] | None = None
        if self._world.is_first:
            generator = torch_generator(self._seed, "base")
            with suppress(ValueError):
                base = MomentBase.of_posteriors(
                    mean.cpu(), std.square().cpu(), self._chains.base_components, generator, self._chains.base_fits
                )
                found = base_tensors(base)
        found = self._world.broadcast(found)
        if found is None:
            raise DivergenceError(
                "The posterior latents in the buffer do not fill the latent space, or are not finite, so no base can "
                "be fitted to them; use prior.base=standard, or lower model.latent_dim or train.generator.rate."
            )
        self.prior = self.prior.on_base(base_from(self.prior.base.dim, found)).to(self._world.device)
        self._fits_base = False
        self.pools.begin(self.prior.base, position)

    def try_base(self, position: int) -> None:
        """Fits the base to a buffer of made-up posteriors, for a dry run to see what that takes (collective)."""
        self.buffer.fill(0.1 + torch.rand_like(self.buffer.rows))
        self._fit_base(position)

    def evidence(self, z_held_out: Tensor, position: int) -> Evidence:
        """Held-out evidence of the current ratio, the same on every rank (collective).

        Args:
            z_held_out: (B, Z) this rank's held-out posterior latents.
            position: `samples_seen`.
        """
        if self.is_first_stage:
            z_p = self.pools.base_draw(self.prior.base, "evidence", self.held_out_pool.row_streams, position)
        else:
            z_p, _ = self.pools.moved("held_out_pool", self.prior, position, self._chains.num_steps, long=True)
            self.held_out_pool.fill(z_p)
        with torch.no_grad():
            f_q, f_p = self._log_ratio(z_held_out), self._log_ratio(z_p)
        everywhere = [torch.cat(self._world.gather(f)) for f in (f_q, f_p)]
        self._posterior_mean = float(everywhere[0].double().mean())
        return evidence_of.measure(everywhere[0], everywhere[1], self._grad_norm)

    def decide(self, evidence: Evidence, position: int) -> Decision:
        """The scheduler's decision on this evidence, carried out."""
        decision, state = decide(self.state, evidence, self.criteria, position)
        if isinstance(decision, Advance) or (isinstance(decision, Finish) and decision.freeze):
            self.prior, chains, gain = self.next_prior(self.engine.full_weights(), position)
            if gain != 1:
                decision = replace(decision, reason=f"{decision.reason}; frozen at {gain:.2f} of its strength")
            self.pools.fill(chains)
        self.state = state
        if isinstance(decision, (Advance, RollBack)):
            self.engine.reset(self._initial_weights())
        return decision

    def next_prior(self, weights: dict[str, Tensor], position: int) -> tuple[RatioSequence, dict[str, Tensor], float]:
        """The prior with one more ratio, every pool's chains brought to it, and the ratio's gain (collective).

        Nothing is changed.
        """
        if self._chains.equilibrate == "tilt":
            return self.pools.tilted(self.prior, weights, self._posterior_mean, position)
        prior = self.prior.append(weights)
        return prior, self.pools.equilibrated(prior, position), 1.0

    @contextmanager
    def undone_if_stopped(self) -> Iterator[None]:
        """What `evidence` and `decide` changed inside is taken back where a chain is stopped."""
        held_out = self.held_out_pool.z
        try:
            yield
        except BaseException:
            self.held_out_pool.z = held_out
            raise

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the chains' and the buffer's tables, over all ranks."""
        tables = {f"{name}/{key}": size for name, table in self._tables.items() for key, size in table.shapes().items()}
        return tables | {name: tensor.shape for name, tensor in self._base_tensors().items()}

    def check_shapes(self, saved: Mapping[str, Sequence[int]]) -> None:
        """Refuses tables of other shapes, as an earlier version kept them of some runs, with a ConfigError."""
        wrong = [name for name, size in self.shapes().items() if torch.Size(saved.get(name, ())) != size]
        if wrong:
            raise ConfigError(
                f"The checkpoint keeps {wrong[0]} in another shape than this version of ebmscale; go on with the "
                "version that began the run, or train anew under another run.name."
            )

    def share(self) -> list[Piece]:
        """This rank's share of the tables."""
        return [
            Piece(one.span._replace(name=f"{name}/{one.span.name}"), one.values)
            for name, table in self._tables.items()
            for one in table.share()
        ] + share_of(self._base_pieces(), self._world.rank, self._world.size)

    def wanted(self) -> list[Span]:
        """The spans that `restore` needs on this rank."""
        return [
            span._replace(name=f"{name}/{span.name}") for name, table in self._tables.items() for span in table.wanted()
        ] + [one.span for one in self._base_pieces()]

    def _base_pieces(self) -> list[Piece]:
        return [piece(name, tensor) for name, tensor in self._base_tensors().items()]

    def _base_tensors(self) -> dict[str, Tensor]:
        """The base that was fitted; before, N(0, I) in tensors of the same shapes."""
        base, chains = self.prior.base, self._chains
        if self._fits_base:
            base = MomentBase.standard(base.dim, chains.base_components * chains.base_fits)
        return {f"{BASE}{name}": tensor for name, tensor in base_tensors(base).items()}

    def values(self) -> dict[str, Any]:
        """The plain values that `restore` takes."""
        return {"stage": asdict(self.state), "grad_norm": self._grad_norm, "fits_base": self._fits_base}

    def restore(self, prior: RatioSequence, tensors: Mapping[Span, Tensor], values: dict[str, Any]) -> None:
        """Takes what `share` and `values` gave, on any world size; engine and frozen ratios are stored apart."""
        whole = {one.span.name.removeprefix(BASE): tensors[one.span] for one in self._base_pieces()}
        self._fits_base = values.get("fits_base", False)
        base = base_from(prior.base.dim, {} if self._fits_base else whole)
        self.prior = prior.on_base(base).to(self._world.device)
        self.state = StageState(**values["stage"])
        self._grad_norm = values["grad_norm"]
        for name, table in self._tables.items():
            table.restore({span: tensors[span._replace(name=f"{name}/{span.name}")] for span in table.wanted()})

    def shift(self, num_samples: int) -> None:
        """Sets the stage's clock on: it has trained for no longer than before, but `samples_seen` has moved."""
        since = self.state.settling_since
        self.state = replace(
            self.state,
            started=self.state.started + num_samples,
            settling_since=None if since is None else since + num_samples,
        )

    def _log_ratio(self, z: Tensor) -> Tensor:
        dtype = next(self.engine.module.parameters()).dtype
        return self.engine(self.prior.coordinates(z).to(dtype)).float()

    def _initial_weights(self) -> dict[str, Tensor]:
        network = copy.deepcopy(self.prior.network)
        initialise(network, torch_generator(self._seed, "ratio-weights", self.state.stage, self.state.rollbacks))
        return network.state_dict()
