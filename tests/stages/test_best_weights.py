"""The weights of a stage's least held-out loss: they are what is frozen, and they survive an interruption."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ebmscale.density.schedule import Advance, StageState
from ebmscale.errors import ConfigError
from ebmscale.model.pieces import Span
from ebmscale.networks import build_ratio_net
from ebmscale.stages.best_weights import BestWeights
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engine_plain import PlainEngine
from ebmscale.world import World
from tests.stages.moving_gaussian import posterior, train
from tests.stages.test_density_negatives import HELD_OUT, STAGES, make_trainer, restore, saved


def spoiled(trainer: StageTrainer) -> None:
    """Gives the engine weights that are worse than the zero function on held-out samples."""
    weights = trainer.engine.full_weights()
    trainer.engine.reset({**weights, "inner.inner.layers.4.bias": weights["inner.inner.layers.4.bias"] + 9})


def trained() -> StageTrainer:
    """A trainer with evidence of a good ratio, whose weights were spoiled after it."""
    trainer = make_trainer()
    train(trainer, 0, 4, HELD_OUT)
    assert trainer.best.loss is not None
    spoiled(trainer)
    return trainer


def test_a_stage_ends_with_the_weights_of_its_least_held_out_loss() -> None:
    trainer = trained()
    best, position = trainer.best.whole(), trainer.best.position
    now = STAGES.settle_samples * 10
    trainer.state = replace(trainer.state, settling_since=0)
    evidence = trainer.evidence(posterior(1, HELD_OUT), now)
    assert trainer.best.loss == pytest.approx(evidence.loss, abs=0.1)
    decision = trainer.decide(evidence, now)
    assert isinstance(decision, Advance)
    assert f"weights of {position:,} samples" in decision.reason
    frozen = trainer.prior.stage_weights(1)
    assert all(torch.equal(frozen[name], best[name]) for name in best if name != "gain")
    assert trainer.best.loss is None


def test_the_last_weights_stay_where_the_target_has_moved_from_the_best_ones() -> None:
    """The least loss was measured on another target; on the posteriors of now the last weights are better."""
    trainer = trained()
    trainer.best.offer(-1.0, 7)  # the spoiled weights, with a loss that no later one is below
    reset = make_trainer().engine.full_weights()
    trainer.engine.reset(reset)
    now = STAGES.settle_samples * 10
    trainer.state = replace(trainer.state, settling_since=0)
    evidence = trainer.evidence(posterior(1, HELD_OUT), now)
    assert evidence.loss == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    frozen = trainer.next_prior(now).prior.stage_weights(1)
    assert all(torch.equal(frozen[name], one) for name, one in reset.items() if name not in ("gain", "inner.bound"))


def test_the_best_weights_come_back_after_an_interruption() -> None:
    first, second = trained(), make_trainer()
    restore(second, saved(first))
    assert second.best.values() == first.best.values()
    one, other = first.best.whole(), second.best.whole()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_an_earlier_version_has_none() -> None:
    first, second = trained(), make_trainer()
    state = saved(first)
    del state["parts"]["best"], state["values"]["best"]
    restore(second, state)
    assert second.best.loss is None
    assert second.state == StageState(**state["values"]["stage"])


class FakeWorld(World):
    """A rank of several whose objects are gathered from a list."""

    def gather_objects(self, value: object) -> list[object]:
        return list(GATHERED)


GATHERED: list[object] = []


@pytest.mark.parametrize("size", [1, 3])
def test_every_rank_keeps_its_share_and_another_number_of_ranks_restores_it(size: int) -> None:
    network = build_ratio_net(2, (5,), generator=torch.Generator().manual_seed(0))
    adam = OptimizerSettings(1e-3, (0.9, 0.999))
    worlds = [FakeWorld(rank, size, torch.device("cpu")) for rank in range(size)]
    kept = [BestWeights(PlainEngine(network, adam, EngineSettings(), world), world) for world in worlds]
    for one in kept:
        one.offer(0.5, 100)
    spans: dict[Span, Tensor] = {piece.span: piece.values for one in kept for piece in one.share()}
    assert sum(span.length for span in spans) == sum(p.numel() for p in network.state_dict().values())
    GATHERED[:] = [[(piece.span, piece.values) for piece in one.share()] for one in kept]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert all(torch.equal(value, before[name]) for name, value in kept[0].whole().items())
    alone = BestWeights(PlainEngine(network, adam, EngineSettings(), World.alone()), World.alone())
    alone.load_values(kept[0].values())
    whole = kept[0].whole()
    alone.restore({span: whole[span.name.removeprefix("weights/")].flatten() for span in alone.wanted()})
    assert all(torch.equal(value, before[name]) for name, value in alone.whole().items())


def test_best_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ConfigError, match="another ratio network"):
        make_trainer().best.check_shapes({"weights/other": [3]})
