"""Stages in training: what each decision does, interruptions, and the ring of eight Gaussians in little."""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmscale.config import PriorBlock, RatioOptimizerBlock, StagesBlock
from ebmscale.density.bases import MomentBase
from ebmscale.density.evidence import Evidence
from ebmscale.density.losses import chance_loss
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.density.schedule import Advance, Finish, Hold, RollBack, StageState
from ebmscale.errors import ConfigError, DivergenceError
from ebmscale.forecast.rehearsal import try_base
from ebmscale.model.pieces import Span
from ebmscale.networks import build_ratio_net
from ebmscale.seeds import StreamNoise, torch_generator
from ebmscale.stages.make import make_stage_trainer
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.world import World
from tests.stages.moving_gaussian import BATCH, STREAMS, posterior, train

STAGES = StagesBlock(
    max_stages=3,
    batch_size=64,
    updates_per_batch=2,
    buffer_samples=256,
    min_samples=4 * BATCH,
    max_samples=12 * BATCH,
    settle_samples=4 * BATCH,
    evidence_samples=256,
    significance=0.01,
)
CHAINS = PriorBlock(kind="persistent", num_chains=256, num_steps=2, step_size=0.2, equilibrate_steps=5)
OPTIMIZER = RatioOptimizerBlock(rate=5e-3)
GOOD = Evidence(loss=1.0, loss_error=0.02, auc=0.8, calibration_error=0.01, kl_bound=0.5, kl_bound_error=0.01, ess=0.5)
SETTLED = StageState(settling_since=0)
END = STAGES.settle_samples


def make_trainer(
    network: nn.Module | None = None,
    dim: int = 2,
    chains: PriorBlock = CHAINS,
    stages: StagesBlock = STAGES,
    amortised: bool = False,
) -> StageTrainer:
    world = World.alone()
    network = network or build_ratio_net(dim, (16, 16), generator=torch_generator(0, "ratio-weights"))
    prior = RatioSequence(StandardNormal(dim), network)
    engine = make_engine(network, OptimizerSettings(OPTIMIZER.rate, OPTIMIZER.betas), EngineSettings(), world)
    settings = RatioSettings(stages, chains, OPTIMIZER, 0, STREAMS, amortised=amortised)
    return make_stage_trainer(engine, prior, settings, world)


MOMENTS = CHAINS.model_copy(update={"base": "moments", "equilibrate": "tilt", "equilibrate_steps": 40})
BUFFERED = STAGES.model_copy(update={"buffer_samples": 2048, "start_samples": 2048})


def gaussians(position: int) -> Tensor:
    """Means around (3, -2) and standard deviations (B, 4): their mixture has variances 0.25 + 0.09 and 4 + 0.09."""
    generator = torch.Generator().manual_seed(position)
    means = torch.tensor([3.0, -2.0]) + torch.randn(BATCH, 2, generator=generator) * torch.tensor([0.5, 2.0])
    return torch.cat([means, torch.full_like(means, 0.3)], dim=1)


def with_moments(chains: PriorBlock = MOMENTS) -> StageTrainer:
    """A trainer whose buffer is full, as the ratios are about to begin."""
    trainer = make_trainer(chains=chains, stages=BUFFERED, amortised=True)
    for position in range(0, 2048, BATCH):
        assert trainer.update(position) is None
        trainer.observe(gaussians(position), torch.arange(BATCH) % STREAMS)
    return trainer


def test_the_base_takes_the_posteriors_moments_where_the_ratios_begin() -> None:
    trainer = with_moments()
    assert torch.equal(trainer.prior.coordinates(torch.ones(1, 2)), torch.ones(1, 2))
    assert trainer.update(2048) is not None
    base = trainer.prior.base
    assert isinstance(base, MomentBase)
    torch.testing.assert_close(base.mean, torch.tensor([3.0, -2.0]), rtol=0, atol=0.15)
    covariance = base.cholesky @ base.cholesky.T
    torch.testing.assert_close(covariance.diagonal(), torch.tensor([0.34, 4.09]), rtol=0.1, atol=0)
    torch.testing.assert_close(trainer.negatives.pools.training.rows.mean(0), base.mean, rtol=0, atol=0.4)
    trainer.observe(gaussians(9999) + 50, torch.arange(BATCH) % STREAMS)
    trainer.update(2048 + BATCH)
    assert trainer.prior.base is base  # fitted once


def test_posteriors_that_no_base_fits_end_in_a_sentence() -> None:
    trainer = make_trainer(chains=MOMENTS, stages=BUFFERED, amortised=True)
    trainer.latents.buffer.fill(torch.full_like(trainer.latents.buffer.rows, torch.nan))
    with pytest.raises(DivergenceError, match="no base can be fitted"):
        trainer.update(2048)


def test_a_dry_run_trains_ratios_on_a_made_up_base() -> None:
    trainer = make_trainer(chains=MOMENTS, stages=BUFFERED, amortised=True)
    trainer.observe(gaussians(0), torch.arange(BATCH) % STREAMS)
    assert trainer.update(2048) is None
    try_base(trainer, 2048)
    assert trainer.update(2048) is not None


def test_a_gaussian_posterior_leaves_nothing_to_a_ratio_on_its_moments() -> None:
    trainer = with_moments()
    for position in range(2048, 2048 + 12 * BATCH, BATCH):
        trainer.observe(gaussians(position), torch.arange(BATCH) % STREAMS)
        report = trainer.update(position)
    assert report is not None
    assert float(report.loss) == pytest.approx(chance_loss(1), abs=0.1)


def test_amortised_posteriors_are_drawn_anew_at_every_update() -> None:
    trainer = with_moments()
    streams = torch.arange(STREAMS).repeat_interleave(500)
    one, other = (trainer.latents.draw_posteriors(StreamNoise(0, name, 0, streams), streams, 1)[:, 0] for name in "ab")
    assert not torch.isin(one, other).any()
    torch.testing.assert_close(one.std(0), torch.tensor([0.34, 4.09]).sqrt(), rtol=0.1, atol=0)


@pytest.mark.parametrize(("num_components", "num_fits"), [(1, 1), (3, 1), (3, 2)])
def test_the_base_comes_back_with_the_rest(num_components: int, num_fits: int) -> None:
    chains = MOMENTS.model_copy(update={"base_components": num_components, "base_fits": num_fits})
    first, second = with_moments(chains), make_trainer(chains=chains, stages=BUFFERED, amortised=True)
    first.update(2048)
    first.evidence(gaussians(1)[:, :2], 2048)
    first.state = SETTLED
    assert isinstance(first.decide(GOOD, 2048 + END), Advance)
    second.engine.load_state(first.engine.state())
    restore(second, first, tables_of(first), first.values())
    z = torch.randn(7, 2)
    assert torch.equal(second.prior.log_density(z), first.prior.log_density(z))
    for trainer in (first, second):
        trainer.advance_prior(4096)
        trainer.update(4096)
    assert equal(tables_of(first), tables_of(second))


AUTO = MOMENTS.model_copy(update={"base_components": (1, 3, 8)})


def test_a_dry_run_counts_a_base_of_many_components() -> None:
    trainer = make_trainer(dim=16, chains=AUTO, stages=BUFFERED, amortised=True)
    try_base(trainer, 2048)
    assert trainer.latents.tried[8] > trainer.latents.tried[1] + 1


def test_held_out_posteriors_choose_the_number_of_components() -> None:
    """The posteriors are one Gaussian, so held-out ones bear one component, or three that are hardly worse."""
    trainer = with_moments(AUTO)
    assert trainer.latents.wants_held_out(2048)
    assert not trainer.latents.wants_held_out(2047)
    trainer.latents.judge_base_by(torch.cat([gaussians(10**6 + k) for k in range(8)]))
    trainer.update(2048)
    tried = trainer.latents.tried
    assert list(tried)[:2] == [1, 3]
    assert abs(tried[1] - tried[3]) < 0.05
    found = trainer.prior.base.tensors()
    assert len(found["weights"]) == max(tried, key=lambda size: tried[size])
    assert trainer.latents.shapes()["base/weights"] == torch.Size((8,))
    assert not trainer.latents.wants_held_out(4096)


def test_the_base_that_was_chosen_comes_back_with_what_was_tried() -> None:
    first, second = with_moments(AUTO), make_trainer(chains=AUTO, stages=BUFFERED, amortised=True)
    first.update(2048)
    second.engine.load_state(first.engine.state())
    restore(second, first, tables_of(first), first.values())
    assert second.latents.tried == first.latents.tried
    z = torch.randn(7, 2)
    assert torch.equal(second.prior.log_density(z), first.prior.log_density(z))
    for trainer in (first, second):
        trainer.update(4096)
    assert equal(tables_of(first), tables_of(second))
    assert equal(first.engine.state(), second.engine.state())


def test_back_before_the_base_was_fitted_it_is_the_standard_normal_again() -> None:
    chains = MOMENTS.model_copy(update={"base_components": 3})
    trainer = with_moments(chains)
    before, values = tables_of(trainer), trainer.values()
    fitted = [prior_after(trainer)]
    restore(trainer, trainer, before, values)
    assert isinstance(trainer.prior.base, StandardNormal)
    fitted.append(prior_after(trainer))
    z = torch.randn(7, 2)
    assert torch.equal(fitted[0].log_density(z), fitted[1].log_density(z))


def restore(trainer: StageTrainer, saved: StageTrainer, tables: dict[Span, Tensor], values: dict[str, Any]) -> None:
    """What a run does with a checkpoint, its engine apart."""
    trainer.load_values(values)
    trainer.latents.restore(tables)
    trainer.best.restore({one.span: one.values.clone() for one in saved.best.share()})
    trainer.take_frozen([saved.prior.stage_tensors(k + 1) for k in range(saved.prior.num_stages)])


def prior_after(trainer: StageTrainer) -> RatioSequence:
    """The prior after the update where the ratios begin."""
    assert trainer.update(2048) is not None
    assert isinstance(trainer.prior.base, MomentBase)
    return trainer.prior


def test_a_buffer_of_samples_is_not_taken_for_one_of_gaussians() -> None:
    trainer = make_trainer(chains=MOMENTS, stages=BUFFERED, amortised=True)
    trainer.latents.check_shapes(trainer.latents.shapes())
    with pytest.raises(ConfigError, match=r"buffer/z in another shape"):
        trainer.latents.check_shapes(make_trainer(chains=MOMENTS, stages=BUFFERED).latents.shapes())


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_nothing_is_trained_before_every_stream_was_seen_and_after_the_end() -> None:
    trainer = make_trainer()
    assert trainer.update(0) is None
    trainer.observe(torch.ones(STREAMS - 1, 2), torch.arange(STREAMS - 1))
    assert trainer.update(0) is None
    trainer.observe(torch.ones(1, 2), torch.tensor([STREAMS - 1]))
    assert trainer.update(0) is not None
    trainer.state = StageState(finished=True)
    assert trainer.update(0) is None


@pytest.mark.parametrize(
    ("state", "factor"),
    [(StageState(), 1.0), (StageState(rate_scale=0.5), 0.5), (SETTLED, 0.5), (StageState(settling_since=-END // 2), 0)],
)
def test_an_update_is_made_at_the_rate_of_the_schedule(state: StageState, factor: float) -> None:
    """Adam's first update moves a parameter by the rate; half-way through settling that is half of it."""
    trainer = make_trainer(stages=STAGES.model_copy(update={"updates_per_batch": 1}))
    trainer.observe(posterior(0), torch.arange(BATCH) % STREAMS)
    trainer.state = state
    before = trainer.engine.full_weights()
    trainer.update(END // 2)
    moved = max(float((after - before[name]).abs().max()) for name, after in trainer.engine.full_weights().items())
    assert moved == pytest.approx(factor * OPTIMIZER.rate, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("equilibrate", ["smc", "langevin"])
def test_the_chains_of_evidence_are_not_those_of_training(equilibrate: str) -> None:
    trainer = make_trainer(chains=CHAINS.model_copy(update={"equilibrate": equilibrate}))
    for _ in range(2):
        pools = trainer.negatives.pools
        assert torch.cat([pools.training.rows, pools.held_out.rows]).unique(dim=0).shape[0] == 512
        trainer.state = SETTLED
        trainer.decide(GOOD, END)


def test_no_stages_leave_the_base_as_the_prior() -> None:
    trainer = make_trainer(stages=STAGES.model_copy(update={"max_stages": 0}))
    assert trainer.state.finished
    assert train(trainer, 0, 4) == [Hold, Hold]
    assert trainer.is_first_stage


def test_a_new_ratio_says_nothing() -> None:
    evidence = make_trainer().evidence(posterior(0), 0)
    assert evidence.loss == pytest.approx(chance_loss(1))
    assert (evidence.auc, evidence.ess) == pytest.approx((0.5, 1.0))
    assert evidence.kl_bound == pytest.approx(0.0, abs=1e-12)


def test_a_ratio_learns_to_tell_the_two_sides_apart() -> None:
    """KL(q || p_0) = 1.64 nats; a hundred updates of a small network find most of it, and no more than it."""
    trainer = make_trainer(stages=STAGES.model_copy(update={"min_samples": 10**6, "max_samples": 10**6}))
    train(trainer, 0, 50)
    evidence = trainer.evidence(torch.cat([posterior(10**7 + i) for i in range(30)]), 0)
    assert 0.8 < evidence.kl_bound < 1.64 + 4 * evidence.kl_bound_error


def test_advancing_freezes_the_ratio_and_starts_the_next_from_zero() -> None:
    trainer = make_trainer()
    train(trainer, 0, 2)
    trainer.state = SETTLED
    frozen, pool = trainer.engine.full_weights(), trainer.negatives.pools.training.rows.clone()
    assert isinstance(trainer.decide(GOOD, END), Advance)
    assert trainer.state == StageState(stage=2, started=END)
    assert equal(trainer.prior.stage_weights(1), frozen)
    assert not trainer.engine(torch.randn(5, 2)).any()
    assert not torch.equal(trainer.negatives.pools.training.rows, pool)
    assert int(trainer.engine.state()["step"]) == 0


def test_a_finish_without_gain_drops_the_ratio_and_one_at_the_last_stage_keeps_it() -> None:
    stages = STAGES.model_copy(update={"max_stages": 1})
    for bound, num_stages in ((-0.1, 0), (0.5, 1)):
        trainer = make_trainer(stages=stages)
        trainer.criteria = type(trainer.criteria)(**{**vars(trainer.criteria), "target_moves": False})
        trainer.state = SETTLED
        nothing_or_gain = Evidence(**{**vars(GOOD), "kl_bound": bound})
        assert isinstance(trainer.decide(nothing_or_gain, END), Finish)
        assert trainer.prior.num_stages == num_stages


def test_a_roll_back_starts_the_ratio_again_from_other_weights_and_keeps_prior_and_chains() -> None:
    trainer = make_trainer()
    train(trainer, 0, 1)
    before, pool = trainer.engine.full_weights(), trainer.negatives.pools.training.rows.clone()
    assert isinstance(trainer.decide(Evidence(**{**vars(GOOD), "loss": float("nan")}), END), RollBack)
    first = trainer.engine.full_weights()
    assert isinstance(trainer.decide(Evidence(**{**vars(GOOD), "loss": float("nan")}), END), RollBack)
    second = trainer.engine.full_weights()
    assert not equal(before, first)
    assert not equal(first, second)
    assert not trainer.engine(torch.randn(5, 2)).any()
    assert trainer.state.rate_scale == 0.25
    assert trainer.is_first_stage
    assert torch.equal(trainer.negatives.pools.training.rows, pool)


def test_training_and_measuring_move_only_their_own_chains() -> None:
    trainer = make_trainer()
    trainer.state = SETTLED
    trainer.decide(GOOD, END)
    pool, held_out = trainer.negatives.pools.training.rows.clone(), trainer.negatives.pools.held_out.rows.clone()
    trainer.observe(posterior(0), torch.arange(BATCH) % STREAMS)
    trainer.advance_prior(END)
    trainer.update(END)
    assert torch.equal(trainer.negatives.pools.held_out.rows, held_out)
    assert not torch.equal(trainer.negatives.pools.training.rows, pool)
    pool = trainer.negatives.pools.training.rows.clone()
    trainer.evidence(posterior(0), END)
    assert torch.equal(trainer.negatives.pools.training.rows, pool)
    assert not torch.equal(trainer.negatives.pools.held_out.rows, held_out)


def tables_of(trainer: StageTrainer) -> dict[Span, torch.Tensor]:
    return {one.span: one.values.clone() for one in trainer.latents.share()}


@pytest.mark.parametrize("interruption", [1, 9, 13])
def test_an_interrupted_run_goes_on_bit_for_bit(interruption: int) -> None:
    whole = make_trainer()
    kinds = train(whole, 0, 20)
    assert Advance in kinds
    first, second = make_trainer(), make_trainer()
    kinds_before = train(first, 0, interruption)
    second.engine.load_state(first.engine.state())
    restore(second, first, tables_of(first), first.values())
    assert kinds_before + train(second, interruption, 20) == kinds
    assert second.state == whole.state
    assert equal(second.engine.state(), whole.engine.state())
    assert equal(second.prior.weights, whole.prior.weights)
    assert equal(tables_of(second), tables_of(whole))


class TwoModes(nn.Module):
    """The exact log_ratio of 0.8 N(2.5, 0.3^2) + 0.2 N(-2.5, 0.3^2) over N(0, 1) in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        shares = torch.tensor([0.8, 0.2])
        modes = shares.log() - 0.5 * ((z - torch.tensor([2.5, -2.5])) / 0.3) ** 2
        return self.scale * (modes.logsumexp(1) + 0.5 * z[:, 0].square())


@pytest.mark.parametrize(("equilibrate", "share"), [("smc", 0.8), ("langevin", 0.5)])
def test_only_sequential_monte_carlo_gives_far_modes_their_share(equilibrate: str, share: float) -> None:
    """Langevin steps from N(0, 1) leave half of the chains on either side; the standard error is 0.01."""
    chains = PriorBlock(
        kind="persistent", num_chains=4096, num_steps=1, step_size=0.1, equilibrate=equilibrate, equilibrate_steps=200
    )
    trainer = make_trainer(TwoModes(), dim=1, chains=chains)
    for _ in range(2):  # a second stage, whose ratio is made to say nothing, keeps what the first has brought
        trainer.state = SETTLED
        trainer.decide(GOOD, END)
        trainer.engine.reset({"scale": torch.zeros(())})
    z = trainer.negatives.pools.training.rows[:, 0]
    assert float((z > 0).float().mean()) == pytest.approx(share, abs=0.04)
    assert float(z.abs().mean()) == pytest.approx(2.5, abs=0.03)
    assert float(z.abs().std()) == pytest.approx(0.3, abs=0.02)


@pytest.fixture(scope="module")
def ring() -> ModuleType:
    """tools/bench/ring.py, which is a script and not in a package."""
    path = Path(__file__).parents[2] / "tools" / "bench" / "ring.py"
    spec = importlib.util.spec_from_file_location("ring", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ring"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_ring_and_its_grid_agree_with_closed_forms(ring: ModuleType) -> None:
    """KL(q || p_0) = E_q[-log p_0] - H(q), where the modes hardly overlap."""
    entropy = torch.tensor(8 * 2 * torch.pi * torch.e * ring.SD**2).log()
    cross = torch.tensor(2 * torch.pi).log() + (ring.RADIUS**2 + 2 * ring.SD**2) / 2
    base = RatioSequence(StandardNormal(2), nn.Identity())
    assert ring.Grid().kl(base) == pytest.approx(float(cross - entropy), abs=1e-4)
    assert ring.Grid(num_points=1001).kl(base) == pytest.approx(ring.Grid().kl(base), abs=1e-6)
    samples = ring.sample_ring(100_000, torch_generator(0, "ring"))
    assert float(-ring.ring_log_density(samples).mean()) == pytest.approx(float(entropy), abs=4 * (1 / 100_000) ** 0.5)


def test_every_stage_brings_the_prior_closer_to_the_ring(ring: ModuleType) -> None:
    batch = ring.BATCH
    short = {"max_samples": 40 * batch, "settle_samples": 30 * batch, "min_samples": batch, "evidence_samples": 2048}
    stages = ring.STAGES.model_copy(update=short | {"max_stages": 2, "evidence_every": 10 * batch})
    chains = ring.CHAINS.model_copy(update={"num_chains": 2048, "equilibrate_steps": 10})
    grid = ring.Grid(num_points=251)
    trainer = ring.make_trainer(0, stages, chains)
    start = grid.kl(trainer.prior)
    rows = ring.train(trainer, stages, 0, grid)
    assert [row.stage for row in rows] == [1, 2]
    assert [row.updates for row in rows] == [640, 640]
    kls = [start, *(row.kl for row in rows)]
    assert all(later < 0.5 * earlier for earlier, later in pairwise(kls)), kls


def test_a_single_stage_spends_the_budget_and_ends_at_rate_zero(ring: ModuleType) -> None:
    stages = ring.single_stage(8000)
    assert stages.max_samples * stages.updates_per_batch == 8000 * ring.BATCH
    assert stages.settle_samples % stages.evidence_every == 0
