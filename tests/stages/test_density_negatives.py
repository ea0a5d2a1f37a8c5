"""Training whose negatives are samples of p_k as a density: what a freeze does, interruptions, and other worlds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmscale.config import PriorBlock, RatioOptimizerBlock, StagesBlock
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.density.schedule import Advance, Hold, StageState
from ebmscale.errors import ConfigError
from ebmscale.model.pieces import Span
from ebmscale.networks import Bounded, Standardised, build_ratio_net, set_bound
from ebmscale.seeds import StreamNoise, torch_generator
from ebmscale.stages import density_negatives
from ebmscale.stages.density_negatives import DensityNegatives
from ebmscale.stages.make import make_stage_trainer
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.world import World
from tests.stages.moving_gaussian import BATCH, STREAMS, posterior, train

HELD_OUT = 512
STAGES = StagesBlock(
    max_stages=3,
    batch_size=64,
    updates_per_batch=4,
    buffer_samples=256,
    min_samples=4 * BATCH,
    max_samples=10 * BATCH,
    settle_samples=4 * BATCH,
    significance=0.01,
)
SETTINGS = RatioSettings(
    STAGES, PriorBlock(num_particles=1024), RatioOptimizerBlock(rate=5e-3), seed=0, num_streams=STREAMS
)


def form() -> Standardised:
    network = Standardised(Bounded(build_ratio_net(2, (16, 16), generator=torch_generator(0, "weights"))), 2)
    set_bound(network, 16.0)
    return network


def make_trainer(settings: RatioSettings = SETTINGS) -> StageTrainer:
    world, network = World.alone(), form()
    optimizer = OptimizerSettings(settings.optimizer.rate, settings.optimizer.betas)
    engine = make_engine(network, optimizer, EngineSettings(), world)
    return make_stage_trainer(engine, RatioSequence(StandardNormal(2), network), settings, world)


def saved(trainer: StageTrainer) -> dict[str, Any]:
    """What a checkpoint holds of a trainer."""
    parts = {
        name: {one.span: one.values.clone() for one in part.share()}
        for name, part in trainer.parts.items()
        if name != "ratio"
    }
    frozen = [trainer.prior.stage_tensors(k + 1) for k in range(trainer.prior.num_stages)]
    return {"engine": trainer.engine.state(), "parts": parts, "values": trainer.values(), "frozen": frozen}


def restore(trainer: StageTrainer, state: dict[str, Any]) -> None:
    """What a run does with a checkpoint."""
    trainer.load_values(state["values"])
    trainer.engine.load_state(state["engine"])
    for name, tensors in state["parts"].items():
        trainer.parts[name].restore(tensors)
    trainer.take_frozen(state["frozen"])


def equal(one: dict[Span, Tensor], other: dict[Span, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(params=["weights", "particles"])
def supply(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether stages after the first have weighted draws or particles."""
    monkeypatch.setattr(density_negatives, "MIN_SHARE", 1e-6 if request.param == "weights" else 0.999)
    return str(request.param)


def test_two_interruptions_in_a_row_change_nothing(supply: str) -> None:
    whole = make_trainer()
    kinds = train(whole, 0, 22, HELD_OUT)
    assert Advance in kinds[:6]
    assert whole.prior.num_stages >= 1
    state, found = saved(make_trainer()), []
    for begin, end in ((0, 3), (3, 15), (15, 22)):  # in the first stage, and in the second one
        trainer = make_trainer()
        restore(trainer, state)
        found += train(trainer, begin, end, HELD_OUT)
        state = saved(trainer)
    assert [kind.__name__ for kind in found] == [kind.__name__ for kind in kinds][: len(found)]
    expected = saved(whole)
    assert state["values"] == expected["values"]
    assert all(equal(state["parts"][name], expected["parts"][name]) for name in expected["parts"])
    assert all(torch.equal(one, expected["engine"][name]) for name, one in state["engine"].items())


def test_every_stage_brings_the_prior_closer_and_its_bound_is_true(supply: str) -> None:
    """KL(q || p_0) = 1.64 nats, so no stage can have a bound above that."""
    trainer = make_trainer(replace(SETTINGS, stages=STAGES.model_copy(update={"updates_per_batch": 16})))
    q = posterior(10**7, 4096)
    before = float(trainer.prior.log_density(q).mean())
    train(trainer, 0, 11, HELD_OUT)
    assert trainer.prior.num_stages == 1
    source = trainer.negatives
    assert isinstance(source, DensityNegatives)
    log_z = source.values()["log_z"]
    gained = float(trainer.prior.log_density(q).mean()) - log_z - before
    assert 1.0 < gained < 1.64 + 0.1
    fresh = source.held_out(trainer.prior, 0)
    mean = (fresh.weights[:, None] * fresh.z).mean(0)
    torch.testing.assert_close(mean, torch.ones(2), rtol=0, atol=0.15)
    assert trainer.memorised is not None
    assert abs(trainer.memorised.of_negatives) < 0.1
    assert abs(trainer.memorised.of_target) < 0.1


def test_samples_of_every_prior_are_checked_where_it_is_frozen(supply: str) -> None:
    """Under N(0, I) samples have a mean log density of -1 and posteriors of -1.25; under p_1 they nearly agree."""
    trainer = make_trainer(replace(SETTINGS, stages=STAGES.model_copy(update={"updates_per_batch": 16})))
    train(trainer, 0, 9, HELD_OUT)
    assert trainer.checks == {}
    now = 10 * BATCH
    evidence = trainer.evidence(posterior(7, 4096), now)
    assert isinstance(trainer.decide(evidence, now), Advance)
    assert list(trainer.checks) == [0, 1]
    before, after = trainer.checks.values()
    log_2pi = torch.log(torch.tensor(2 * torch.pi)).item()
    assert before.of_samples[0] == pytest.approx(-1 - log_2pi, abs=5 * before.of_samples[1])
    assert before.of_held_out[0] == pytest.approx(-1.25 - log_2pi, abs=5 * before.of_held_out[1])
    assert before.difference == pytest.approx(0.25, abs=5 * before.error)
    assert before.error == pytest.approx(0.02, rel=0.5)
    assert not after.fails
    assert trainer.decide(evidence, now + 1) is not None
    assert trainer.checks == {}


def test_a_ratio_that_says_nothing_is_not_frozen() -> None:
    trainer = make_trainer()
    trainer.observe(posterior(0), torch.arange(BATCH) % STREAMS)
    evidence = trainer.evidence(posterior(1, HELD_OUT), 0)
    trainer.state = StageState(settling_since=0)
    assert isinstance(trainer.decide(evidence, STAGES.settle_samples), Hold)
    assert trainer.prior.num_stages == 0


def test_the_number_of_workers_changes_no_negative(supply: str) -> None:
    alone = make_trainer()
    train(alone, 0, 12, HELD_OUT)
    assert alone.prior.num_stages
    state = saved(alone)
    drawn = alone.negatives.draw(alone.prior, _no_noise(), torch.arange(BATCH) % STREAMS, 2)
    rows = torch.arange(BATCH)
    for size in (2, 4):
        for rank in range(size):
            source = DensityNegatives(
                SETTINGS, RatioSequence(StandardNormal(2), form()), World(rank, size, torch.device("cpu"))
            )
            source.load_values(state["values"]["negatives"])
            source.restore(_cut(state["parts"]["particles"], source))
            source.resume(alone.prior)
            part = source.draw(alone.prior, _no_noise(), rows, 2)
            own = rows[rows % STREAMS % size == rank]
            torch.testing.assert_close(part.z, drawn.z[own])
            torch.testing.assert_close(part.weights, drawn.weights[own])


def _no_noise() -> StreamNoise:
    return StreamNoise(0, "nothing", 0, [0])


def _cut(tensors: dict[Span, Tensor], source: DensityNegatives) -> dict[Span, Tensor]:
    """The spans that another rank wants, from those that one rank saved whole."""
    whole = {span.name: values for span, values in tensors.items()}
    return {span: whole[span.name][span.start : span.start + span.length] for span in source.wanted()}


def test_other_numbers_of_particles_are_refused() -> None:
    few = make_trainer(replace(SETTINGS, chains=PriorBlock(num_particles=512))).negatives.parts["particles"]
    with pytest.raises(ConfigError, match=r"prior\.num_particles"):
        make_trainer().negatives.parts["particles"].check_shapes(few.shapes())
