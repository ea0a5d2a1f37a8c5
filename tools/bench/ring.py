"""Eight Gaussians on a ring: does the scheduler take N(0, I) to the ring, and what does one long stage reach?

    python tools/bench/ring.py --seeds 3

Samples of the ring are handed to `StageTrainer` as if they were posterior latents; nothing else is trained. In two
dimensions both densities can be normalised on a grid, so KL(q || p_k) is known, and not only bounded.

Shapes: N points, G grid points.
"""

import argparse
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import matplotlib
import torch
from torch import Tensor

from ebmscale.config import PriorBlock, RatioOptimizerBlock, StagesBlock
from ebmscale.density.evidence import Evidence
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.density.schedule import Advance, Finish
from ebmscale.models import build_ratio_net
from ebmscale.seeds import torch_generator
from ebmscale.train.engine import EngineSettings, OptimizerSettings, make_engine
from ebmscale.train.stages import StageTrainer
from ebmscale.world import World

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the backend is chosen)

NUM_MODES, RADIUS, SD = 8, 2.0, 0.1
HIDDEN = (128, 128)
BATCH = 2048
HELD_OUT = 65_536

CHAINS = PriorBlock(num_chains=4096, num_steps=2, step_size=0.04, equilibrate_steps=50)
OPTIMIZER = RatioOptimizerBlock(rate=2e-3)
STAGES = StagesBlock(
    max_stages=12,
    batch_size=512,
    updates_per_batch=4,
    buffer_samples=8 * BATCH,
    min_samples=100 * BATCH,
    max_samples=900 * BATCH,
    settle_samples=500 * BATCH,
    patience=2,
    evidence_every=25 * BATCH,
    evidence_samples=16_384,
)


@dataclass(frozen=True)
class StageRow:
    """One line of the table: what a stage ended with.

    Attributes:
        stage: k, from 1.
        updates: of the ratio, in this stage.
        evidence: the last held-out evidence.
        kept: whether the ratio was frozen into the prior.
        kl: KL(q || p) in nats of the prior after this stage.
    """

    stage: int
    updates: int
    evidence: Evidence
    kept: bool
    kl: float


def ring_means() -> Tensor:
    """The centres of the modes (8, 2)."""
    angles = torch.arange(NUM_MODES, dtype=torch.float64) * (2 * math.pi / NUM_MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def sample_ring(num: int, generator: torch.Generator) -> Tensor:
    """Exact samples (N, 2) of q."""
    modes = torch.randint(NUM_MODES, (num,), generator=generator)
    return ring_means()[modes].float() + SD * torch.randn(num, 2, generator=generator)


def ring_log_density(z: Tensor) -> Tensor:
    """log q at z (N, 2), normalised, as (N,)."""
    exponent = -0.5 * (z[:, None] - ring_means()).square().sum(dim=2) / SD**2
    return exponent.logsumexp(dim=1) - math.log(NUM_MODES * 2 * math.pi * SD**2)


class Grid:
    """A square grid in float64. Sums over it are integrals: the trapezoid rule's error vanishes for smooth densities.

    The default has 501 x 501 points 0.02 apart on [-5, 5]^2: a fifth of the ring's narrowest scale, and 1e-6 of
    the mass of N(0, I) outside.
    """

    def __init__(self, half_width: float = 5.0, num_points: int = 501):
        axis = torch.linspace(-half_width, half_width, num_points, dtype=torch.float64)
        self.half_width, self.num_points = half_width, num_points
        self.points = torch.cartesian_prod(axis, axis)
        self._log_cell = 2 * math.log(float(axis[1] - axis[0]))
        self.log_q = self._normalise(ring_log_density(self.points))

    def log_density(self, prior: RatioSequence) -> Tensor:
        """log p_k at the grid's points (G,), normalised on the grid."""
        exact = RatioSequence(prior.base, prior.network, {name: w.double() for name, w in prior.weights.items()})
        return self._normalise(torch.cat([exact.log_density(part) for part in self.points.split(8192)]))

    def kl(self, prior: RatioSequence) -> float:
        """KL(q || p_k) in nats."""
        mass = torch.exp(self.log_q + self._log_cell)
        return float((mass * (self.log_q - self.log_density(prior))).sum())

    def image(self, log_density: Tensor) -> Tensor:
        """The density as rows of a picture, the second coordinate upwards."""
        return log_density.exp().view(self.num_points, self.num_points).T

    def _normalise(self, log_density: Tensor) -> Tensor:
        return log_density - (log_density.logsumexp(dim=0) + self._log_cell)


def make_trainer(
    seed: int,
    stages: StagesBlock = STAGES,
    chains: PriorBlock = CHAINS,
    optimizer: RatioOptimizerBlock = OPTIMIZER,
) -> StageTrainer:
    """A trainer of ratios between N(0, I) in two dimensions and samples of the ring."""
    world = World.alone()
    network = build_ratio_net(2, HIDDEN, generator=torch_generator(seed, "ratio-weights"))
    settings = OptimizerSettings(optimizer.rate, optimizer.betas, clip_norm=optimizer.clip_norm)
    engine = make_engine(network, settings, EngineSettings(), world)
    prior = RatioSequence(StandardNormal(2), network)
    return StageTrainer(engine, prior, stages, chains, optimizer, world, seed, num_streams=1, target_moves=False)


def train(trainer: StageTrainer, stages: StagesBlock, seed: int, grid: Grid, verbose: bool = False) -> list[StageRow]:
    """Trains stages until the scheduler finishes the sequence; one row a stage."""
    rows: list[StageRow] = []
    position = updates = 0
    streams = torch.zeros(BATCH, dtype=torch.int64)
    while not trainer.state.finished:
        trainer.observe(sample_ring(BATCH, torch_generator(seed, "ring", position)), streams)
        trainer.advance_prior(position)
        trainer.update(position)
        position += BATCH
        updates += stages.updates_per_batch
        if position % stages.evidence_every:
            continue
        evidence = trainer.evidence(sample_ring(HELD_OUT, torch_generator(seed, "held-out", position)), position)
        stage = trainer.state.stage
        decision = trainer.decide(evidence, position)
        if verbose:
            print(f"  {position:9d} loss {evidence.loss:.4f} KL bound {evidence.kl_bound:.4f} {decision.reason}")
        if isinstance(decision, Advance | Finish):
            kept = not isinstance(decision, Finish) or decision.freeze
            rows.append(StageRow(stage, updates, evidence, kept, grid.kl(trainer.prior)))
            updates = 0
    return rows
