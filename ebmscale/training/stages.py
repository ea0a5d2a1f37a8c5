"""The ratio sequence in training: current ratio, frozen stages, prior chains, and the scheduler's decisions.

`StageTrainer` knows nothing of images: it is fed posterior latents, wherever they come from.

Shapes: B rows of this rank, R ratio updates of a batch, Z latent, N chains.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ebmscale.config import PriorBlock, RatioOptimizerBlock, StagesBlock
from ebmscale.density import evidence as evidence_of
from ebmscale.density.evidence import Evidence
from ebmscale.density.langevin import ChainTrace, run_chain, start
from ebmscale.density.losses import magnitude_penalty, n2ce
from ebmscale.density.prior import RatioSequence
from ebmscale.density.resampling import resample
from ebmscale.density.schedule import Advance, Criteria, Decision, Finish, RollBack, StageState, decide, rate_factor
from ebmscale.models import initialise
from ebmscale.seeds import StreamNoise, torch_generator
from ebmscale.training.engine import Engine
from ebmscale.training.streams import StreamTable, owned_rows
from ebmscale.training.tasks import langevin_settings
from ebmscale.world import World

CANDIDATES = 32
"""Draws of p_0 for every chain of a pool that is drawn anew by sequential Monte Carlo."""


@dataclass(frozen=True)
class RatioReport:
    """What the ratio updates of one batch gave: scalars on the device."""

    loss: Tensor
    grad_norm: float


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
    """

    def __init__(
        self,
        engine: Engine,
        prior: RatioSequence,
        stages: StagesBlock,
        chains: PriorBlock,
        optimizer: RatioOptimizerBlock,
        world: World,
        seed: int,
        num_streams: int,
        target_moves: bool = True,
    ):
        self.engine = engine
        self.prior = prior
        self.state = StageState(finished=stages.max_stages == 0)
        self.criteria = Criteria(
            target_moves=target_moves, **stages.model_dump(include=set(Criteria.__dataclass_fields__))
        )
        self._stages = stages
        self._chains = chains
        self._rate = optimizer.rate
        self._world = world
        self._seed = seed
        self._num_streams = num_streams
        self._grad_norm = 0.0
        dim = prior.base.dim
        self.buffer = StreamTable(num_streams, stages.buffer_samples // num_streams, dim, world)
        self.pool = StreamTable(num_streams, chains.num_chains // num_streams, dim, world)
        self.held_out_pool = StreamTable(num_streams, stages.evidence_samples // num_streams, dim, world)
        self.trace: ChainTrace | None = None
        for name, table in self._tables.items():
            table.fill(self._base_draw(f"{name}-start", table.row_streams, 0))

    @property
    def _tables(self) -> dict[str, StreamTable]:
        """The pools of prior chains: the held-out one is never trained on."""
        return {"pool": self.pool, "held_out_pool": self.held_out_pool}

    @property
    def is_first_stage(self) -> bool:
        """Whether the prior is still p_0, whose samples are exact draws."""
        return self.prior.num_stages == 0

    def observe(self, z: Tensor, streams: Tensor) -> None:
        """Adds posterior latents z (B, Z) of the given streams (B,) to the buffer that ratios are trained on."""
        self.buffer.add(z, streams)

    def advance_prior(self, position: int) -> None:
        """Moves the prior chains that training draws from; p_0 needs none."""
        if not self.is_first_stage:
            self.trace = self._move("pool", position, self._chains.num_steps)

    def update(self, position: int) -> RatioReport | None:
        """`updates_per_batch` updates of the current ratio; None when there is nothing to train yet or any more."""
        if self.state.finished or not self.buffer.is_ready():
            return None
        rows = owned_rows(self._stages.batch_size, self._num_streams, self._world)
        num_updates = self._stages.updates_per_batch
        streams = rows % self._num_streams
        noise = StreamNoise(self._seed, "ratio", position, streams, self._world.device)
        z_q = self.buffer.draw(noise.uniform(num_updates), streams)
        z_p = (
            self.prior.base.from_noise(noise.normal(num_updates, self.prior.base.dim))
            if self.is_first_stage
            else self.pool.draw(noise.uniform(num_updates), streams)
        )
        share = len(rows) * self._world.size / self._stages.batch_size  # makes the ranks' average the global mean
        rate = self._rate * rate_factor(self.state, self.criteria, position)
        total = torch.zeros((), device=self._world.device)
        for i in range(num_updates):
            f_q, f_p = self._log_ratio(torch.cat([z_q[:, i], z_p[:, i]])).split(len(rows))
            loss = n2ce(f_q, f_p, self._stages.magnification)
            total += loss.detach()
            if self._stages.penalty:
                loss = loss + self._stages.penalty * magnitude_penalty(f_q, f_p)
            self.engine.backward(loss * share)
            self._grad_norm = self.engine.step(rate)
        return RatioReport(total / num_updates, self._grad_norm)

    def evidence(self, z_held_out: Tensor, position: int) -> Evidence:
        """Held-out evidence of the current ratio, the same on every rank (collective).

        Args:
            z_held_out: (B, Z) this rank's held-out posterior latents.
            position: `samples_seen`.
        """
        if self.is_first_stage:
            z_p = self._base_draw("evidence", self.held_out_pool.row_streams, position)
        else:
            self._move("held_out_pool", position, self._chains.num_steps)
            z_p = self.held_out_pool.rows
        with torch.no_grad():
            f_q, f_p = self._log_ratio(z_held_out), self._log_ratio(z_p)
        everywhere = [torch.cat(self._world.gather(f)) for f in (f_q, f_p)]
        return evidence_of.measure(everywhere[0], everywhere[1], self._grad_norm)

    def decide(self, evidence: Evidence, position: int) -> Decision:
        """The scheduler's decision on this evidence, carried out."""
        decision, self.state = decide(self.state, evidence, self.criteria, position)
        if isinstance(decision, Advance) or (isinstance(decision, Finish) and decision.freeze):
            self.prior = self.prior.append(self.engine.full_weights())
            self._equilibrate(position)
        if isinstance(decision, (Advance, RollBack)):
            self.engine.reset(self._initial_weights())
        return decision

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that `restore` takes; engine and frozen ratios are stored apart (collective)."""
        tables = {"buffer": self.buffer, **self._tables}
        tensors = {f"{name}/{key}": value for name, table in tables.items() for key, value in table.state().items()}
        return tensors, {"stage": asdict(self.state), "grad_norm": self._grad_norm}

    def restore(self, prior: RatioSequence, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Takes what `checkpoint` gave, on any world size."""
        self.prior = prior
        self.state = StageState(**values["stage"])
        self._grad_norm = values["grad_norm"]
        for name, table in {"buffer": self.buffer, **self._tables}.items():
            table.load_state({key: tensors[f"{name}/{key}"] for key in ("z", "written")})

    def _log_ratio(self, z: Tensor) -> Tensor:
        dtype = next(self.engine.module.parameters()).dtype
        return self.engine(z.to(dtype)).float()

    def _base_draw(self, purpose: str, streams: Tensor, position: int) -> Tensor:
        noise = StreamNoise(self._seed, purpose, position, streams, self._world.device)
        return self.prior.base.from_noise(noise.normal(self.prior.base.dim))

    def _initial_weights(self) -> dict[str, Tensor]:
        network = copy.deepcopy(self.prior.network)
        initialise(network, torch_generator(self._seed, "ratio-weights", self.state.stage, self.state.rollbacks))
        return network.state_dict()

    def _equilibrate(self, position: int) -> None:
        """Brings the chains to the new prior, from where they are or by sequential Monte Carlo along the stages."""
        for name in self._tables:
            if self._chains.equilibrate == "smc":
                self._renew(name, position)
            else:
                self._move(name, position, self._chains.equilibrate_steps, purpose="equilibrate")

    @torch.no_grad()
    def _renew(self, name: str, position: int) -> None:
        """Draws a pool anew: p_0, then for every stage resampling by r_k = e^f_k and Langevin steps under p_k.

        Langevin steps alone leave the chains in whichever modes they started near, and an error in how many there
        are in a mode is then invisible to all later ratios. Streams are resampled one by one.
        """
        table, dim = self._tables[name], self.prior.base.dim
        num_streams, num_slots = table.z.shape[:2]
        settings = langevin_settings(self._chains, self._chains.equilibrate_steps)
        noise = StreamNoise(self._seed, f"renew-{name}", position, table.row_streams, self._world.device)
        rows = self.prior.base.from_noise(noise.normal(CANDIDATES, dim).flatten(0, 1))
        for stage in range(1, self.prior.num_stages + 1):
            log_ratio = functional_call(self.prior.network, self.prior.stage_weights(stage), (rows,))
            chosen = resample(log_ratio.view(num_streams, -1), noise.uniform().view(num_streams, num_slots))
            rows = rows.view(num_streams, -1, dim).gather(1, chosen[:, :, None].expand(-1, -1, dim)).flatten(0, 1)
            target = self.prior.prefix(stage).evaluate
            rows = run_chain(target, start(target, rows), noise.normal(settings.num_steps, dim), settings)[0].z
        table.fill(rows)

    def _move(self, name: str, position: int, num_steps: int, purpose: str = "prior") -> ChainTrace:
        """Runs the chains of a pool under the current prior, from where they are or anew from p_0."""
        table = self._tables[name]
        noise = StreamNoise(self._seed, f"{purpose}-{name}", position, table.row_streams, self._world.device)
        z = table.rows
        if self._chains.kind == "short_run":
            z = self.prior.base.from_noise(noise.normal(self.prior.base.dim))
        settings = langevin_settings(self._chains, num_steps)
        chain_noise = noise.normal(num_steps, self.prior.base.dim)
        state, trace = run_chain(self.prior.evaluate, start(self.prior.evaluate, z), chain_noise, settings)
        table.fill(state.z)
        return trace
