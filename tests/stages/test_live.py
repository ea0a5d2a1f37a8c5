"""Live priors between normal densities: the direction of an update, what is learned, interruptions."""

import pytest
import torch
from torch import Tensor

from ebmscale.config import PriorBlock, RatioOptimizerBlock, StagesBlock
from ebmscale.density.langevin import LangevinSettings
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.density.schedule import Hold
from ebmscale.kernels.prior_chain import run_prior_chain
from ebmscale.networks import RatioNets, build_ratio_net
from ebmscale.seeds import torch_generator
from ebmscale.stages.live import LiveKind, LiveTrainer
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.world import World

STREAMS, BATCH = 4, 128
NUM_RATIOS: dict[LiveKind, int] = {"lebm": 1, "tre": 3}
MEAN = torch.tensor([1.0, -0.5])


def make_trainer(kind: LiveKind) -> LiveTrainer:
    nets = [
        build_ratio_net(2, (16, 16), generator=torch_generator(0, "ratio-weights", k)) for k in range(NUM_RATIOS[kind])
    ]
    world, optimizer = World.alone(), RatioOptimizerBlock(rate=5e-3)
    engine = make_engine(RatioNets(nets), OptimizerSettings(optimizer.rate, optimizer.betas), EngineSettings(), world)
    return LiveTrainer(
        engine,
        RatioNets(nets),
        kind,
        RatioSequence(StandardNormal(2), nets[0]),
        RatioSettings(
            StagesBlock(batch_size=128, updates_per_batch=2, buffer_samples=1024, evidence_samples=256),
            PriorBlock(num_chains=32, num_steps=20, step_size=0.3),
            optimizer,
            seed=0,
            num_streams=STREAMS,
        ),
        world,
    )


def posterior(position: int) -> Tensor:
    """N(MEAN, I), a new batch at every position."""
    return MEAN + torch.randn(BATCH, 2, generator=torch_generator(0, "posterior", position))


def train(trainer: LiveTrainer, begin: int, end: int) -> None:
    for position in range(begin * BATCH, end * BATCH, BATCH):
        trainer.observe(posterior(position), torch.arange(BATCH) % STREAMS)
        trainer.advance_prior(position)
        report = trainer.update(position)
        assert report is not None
        assert not report.bad


@pytest.mark.parametrize("kind", NUM_RATIOS)
def test_an_update_makes_data_likelier_than_draws_of_the_base(kind: LiveKind) -> None:
    trainer = make_trainer(kind)
    q, p = posterior(10**6), torch.randn(512, 2, generator=torch_generator(0, "base"))
    assert not trainer.prior.log_ratios(torch.cat([q, p])).any()
    train(trainer, 0, 2)
    gain = trainer.prior.log_ratios(q).sum(0).mean() - trainer.prior.log_ratios(p).sum(0).mean()
    assert gain > 0.01


@pytest.mark.parametrize("kind", NUM_RATIOS)
def test_the_prior_is_what_the_engine_holds_and_nothing_counts_as_frozen(kind: LiveKind) -> None:
    trainer = make_trainer(kind)
    train(trainer, 0, 3)
    z = torch.randn(5, 2)
    with torch.no_grad():
        current = trainer.engine(z.expand(NUM_RATIOS[kind], -1, -1))
    torch.testing.assert_close(trainer.prior.log_ratios(z), current)
    assert trainer.prior.num_stages == NUM_RATIOS[kind]
    assert trainer.frozen.num_stages == 0


@pytest.mark.parametrize("kind", NUM_RATIOS)
def test_an_interrupted_run_goes_on_bit_for_bit(kind: LiveKind) -> None:
    whole, first, second = (make_trainer(kind) for _ in range(3))
    train(whole, 0, 6)
    train(first, 0, 3)
    second.engine.load_state(first.engine.state())
    second.load_values(first.values())
    second.latents.restore({one.span: one.values.clone() for one in first.latents.share()})
    second.take_frozen([])
    train(second, 3, 6)
    for name, value in whole.engine.state().items():
        assert torch.equal(second.engine.state()[name], value), name
    for name, value in whole.prior.weights.items():
        assert torch.equal(second.prior.weights[name], value), name
    for one, other in zip(whole.latents.share(), second.latents.share(), strict=True):
        assert torch.equal(one.values, other.values)


def test_the_ratios_of_a_bridge_add_up_to_the_log_ratio() -> None:
    """log q - log p_0 = MEAN z - |MEAN|^2 / 2; KL(q || p_0) = |MEAN|^2 / 2 = 0.625 nats."""
    trainer = make_trainer("tre")
    train(trainer, 0, 80)
    z = posterior(10**6)
    found = trainer.prior.log_ratios(z).sum(0)
    exact = z @ MEAN - MEAN.square().sum() / 2
    assert float((found - exact).std()) < 0.35 * float(exact.std())
    assert float(found.mean()) == pytest.approx(float(exact.mean()), abs=0.2)
    evidence = trainer.evidence(torch.cat([posterior(10**7 + i) for i in range(16)]), 0)
    assert 0.4 < evidence.kl_bound < 0.625 + 4 * evidence.kl_bound_error
    assert isinstance(trainer.decide(evidence, 0), Hold)


def test_short_run_chains_under_a_learned_energy_have_the_mean_of_the_data() -> None:
    """Maximum likelihood with short-run chains matches moments of what the chains give, converged or not."""
    trainer = make_trainer("lebm")
    train(trainer, 0, 80)
    noise = torch.randn(4096, 21, 2, generator=torch_generator(0, "chains"))
    settings = LangevinSettings(20, 0.3)
    ends, _ = run_prior_chain(trainer.prior, noise[:, 0], noise[:, 1:].contiguous(), settings)
    torch.testing.assert_close(ends.mean(0), MEAN, rtol=0, atol=0.15)
