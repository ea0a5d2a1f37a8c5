"""Eight Gaussians on a ring: the adaptive stages from N(0, I) to the ring, compared with one long stage.

    python tools/bench/ring.py --seeds 3

`StageTrainer` gets samples of the ring in place of posterior latents; nothing else is trained. In two dimensions both
densities can be normalised on a grid, so KL(q || p_k) is known exactly.

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
from ebmscale.networks import build_ratio_net
from ebmscale.seeds import torch_generator
from ebmscale.stages.make import make_stage_trainer
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.world import World

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUM_MODES, RADIUS, SD = 8, 2.0, 0.1
HIDDEN = (128, 128)
BATCH = 8192
UPDATES = 16
HELD_OUT = 32_768

CHAINS = PriorBlock(
    kind="persistent", num_chains=8192, num_steps=2, step_size=0.04, equilibrate="smc", equilibrate_steps=20
)
OPTIMIZER = RatioOptimizerBlock(rate=2e-3)
STAGES = StagesBlock(
    max_stages=12,
    batch_size=512,
    updates_per_batch=UPDATES,
    buffer_samples=8 * BATCH,
    min_samples=25 * BATCH,
    max_samples=250 * BATCH,
    settle_samples=200 * BATCH,
    patience=2,
    evidence_every=25 * BATCH,
    evidence_samples=16_384,
)


SINGLE_CHAINS = CHAINS.model_copy(update={"equilibrate": "langevin", "equilibrate_steps": 0})
"""A single stage draws from p_0 and does not use its chains."""


@dataclass(frozen=True)
class StageRow:
    """One line of the table: the end of a stage.

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
    of_ratios = RatioSettings(stages, chains, optimizer, seed, num_streams=1, target_moves=False)
    return make_stage_trainer(engine, prior, of_ratios, world)


def single_stage(num_updates: int) -> StagesBlock:
    """One stage with the whole budget: the full rate for a quarter of it, then the cosine to zero."""
    num_samples = num_updates // UPDATES * BATCH
    settle = round(0.8 * num_samples / STAGES.evidence_every) * STAGES.evidence_every
    once = {"max_stages": 1, "min_samples": num_samples // 4, "max_samples": num_samples, "settle_samples": settle}
    return STAGES.model_copy(update=once)


def train(trainer: StageTrainer, stages: StagesBlock, seed: int, grid: Grid) -> list[StageRow]:
    """Trains stages until the scheduler finishes the sequence; one row a stage."""
    rows: list[StageRow] = []
    position = updates = 0
    streams = torch.zeros(BATCH, dtype=torch.int64)
    while not trainer.state.finished:
        trainer.observe(sample_ring(BATCH, torch_generator(seed, "ring", position)), streams)
        trainer.advance_prior(position)
        trainer.update(position)
        position += BATCH
        updates += UPDATES
        if position % stages.evidence_every:
            continue
        evidence = trainer.evidence(sample_ring(HELD_OUT, torch_generator(seed, "held-out", position)), position)
        stage = trainer.state.stage
        decision = trainer.decide(evidence, position)
        if isinstance(decision, Advance | Finish):
            kept = not isinstance(decision, Finish) or decision.freeze
            rows.append(StageRow(stage, updates, evidence, kept, grid.kl(trainer.prior)))
            updates = 0
    return rows


def table(results: list[tuple[list[StageRow], list[StageRow]]]) -> str:
    """Every stage of every seed, and the means, in Markdown."""
    lines = [
        "| seed | stage | updates | held-out loss | KL bound +- s.e. | kept | KL(q, p_k) |",
        "|" + "---|" * 7,
    ]
    for seed, runs in enumerate(results):
        for name, rows in zip(("", "single "), runs, strict=True):
            for row in rows:
                bound = f"{row.evidence.kl_bound:.4f} +- {row.evidence.kl_bound_error:.4f}"
                kept = "yes" if row.kept else "no"
                loss = f"{row.evidence.loss:.4f}"
                lines.append(
                    f"| {seed} | {name}{row.stage} | {row.updates} | {loss} | {bound} | {kept} | {row.kl:.4f} |"
                )
    adaptive = _mean_and_sd(rows[-1].kl for rows, _ in results)
    single = _mean_and_sd(rows[-1].kl for _, rows in results)
    num_stages = ", ".join(str(sum(row.kept for row in rows)) for rows, _ in results)
    lines += ["", f"KL(q, p_K) in nats, {len(results)} seeds, mean +- sd: adaptive {adaptive}, single stage {single}."]
    return "\n".join([*lines, f"K chosen by the scheduler, seed by seed: {num_stages}."])


def _mean_and_sd(values: Iterable[float]) -> str:
    values = list(values)
    spread = f" +- {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def draw(prior: RatioSequence, path: Path) -> None:
    """Writes a picture of the densities p_0, ..., p_K and q."""
    grid = Grid(half_width=3.0, num_points=241)
    densities = {f"$p_{k}$": grid.log_density(prior.prefix(k)) for k in range(prior.num_stages + 1)}
    panels = densities | {"$q$": grid.log_q}
    figure, axes = plt.subplots(1, len(panels), figsize=(2.2 * len(panels), 2.5), layout="constrained")
    for ax, (name, log_density) in zip(axes, panels.items(), strict=True):
        ax.imshow(grid.image(log_density), origin="lower", extent=(-3, 3, -3, 3), cmap="magma")
        ax.set_title(name)
        ax.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="the picture, of seed 0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grid = Grid()
    results: list[tuple[list[StageRow], list[StageRow]]] = []
    for seed in range(arguments.seeds):
        began = time.perf_counter()
        trainer = make_trainer(seed)
        rows = train(trainer, STAGES, seed, grid)
        middle = time.perf_counter()
        once = single_stage(sum(row.updates for row in rows))
        single = train(make_trainer(seed, once, SINGLE_CHAINS), once, seed, grid)
        results.append((rows, single))
        print(f"seed {seed}: {middle - began:.0f} s adaptive, {time.perf_counter() - middle:.0f} s single", flush=True)
        if seed == 0:
            draw(trainer.prior, arguments.out)
    print(f"\nKL(q, p_0) = {grid.kl(make_trainer(0).prior):.4f} nats; chance level of the loss 2 log 2 = 1.3863\n")
    print(table(results))


if __name__ == "__main__":
    main()
