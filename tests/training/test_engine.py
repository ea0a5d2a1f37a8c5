"""The plain engine against a loop written out by hand: it is what every other engine is compared with."""

import copy
import math
import sys

import pytest
import torch
from torch import Tensor, nn

from ebmscale.errors import ConfigError
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engine_plain import PlainEngine
from ebmscale.training.engines import make_engine
from ebmscale.world import World

RATES = [1e-2, 5e-3, 2e-3, 1e-2]
FP32, BF16 = EngineSettings("plain"), EngineSettings("plain", precision="bf16")


def network(seed: int = 0) -> nn.Module:
    """The first layer has no bias: behind it, the batch's mean is taken away, and Adam would follow rounding errors."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 1))


def batch(index: int) -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(index))


def train(engine: PlainEngine, rates: list[float], first: int = 0) -> list[float]:
    norms = []
    for index, rate in enumerate(rates, first):
        engine.backward(engine(batch(index)).square().mean())
        norms.append(engine.step(rate))
    return norms


def make(settings: EngineSettings = FP32, seed: int = 0, **changes: object) -> PlainEngine:
    optimizer = OptimizerSettings(**{"rate": 1e-2, "betas": (0.5, 0.9), "weight_decay": 0.1} | changes)
    return make_engine(network(seed), optimizer, settings, World.alone())


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("factors", [{}, {"1.": 0.3}])
def test_updates_are_those_of_torch(clip_norm, factors):
    module = network()
    groups = [{"params": [parameter], "name": name} for name, parameter in module.named_parameters()]
    adam = torch.optim.AdamW(groups, betas=(0.5, 0.9), weight_decay=0.1)
    norms = []
    for index, rate in enumerate(RATES):
        adam.zero_grad()
        module(batch(index)).square().mean().backward()
        norms.append(nn.utils.clip_grad_norm_(module.parameters(), clip_norm or math.inf).item())
        for group in adam.param_groups:
            group["lr"] = rate * (factors.get("1.", 1.0) if group["name"].startswith("1.") else 1.0)
        adam.step()

    engine = make(clip_norm=clip_norm, factors=factors)
    assert train(engine, RATES) == pytest.approx(norms, rel=1e-6)
    assert min(norms) > 0.05  # so that the clipping bites
    for name, value in engine.full_weights().items():
        torch.testing.assert_close(value, module.state_dict()[name], rtol=0, atol=1e-7, msg=name)


def test_several_losses_add_up_until_the_step():
    at_once, in_parts = make(), make()
    at_once.backward(at_once(batch(0)).square().mean() + at_once(batch(1)).sum())
    in_parts.backward(in_parts(batch(0)).square().mean())
    in_parts.backward(in_parts(batch(1)).sum())
    assert in_parts.step(1e-2) == pytest.approx(at_once.step(1e-2), rel=1e-6)
    for name, value in in_parts.full_weights().items():
        torch.testing.assert_close(value, at_once.full_weights()[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("settings", [FP32, BF16])
def test_a_restored_engine_goes_on_bit_for_bit(settings):
    engine = make(settings)
    train(engine, RATES[:2])
    state = engine.state()
    other = make(settings, seed=1)
    other.load_state(state)
    assert_same(other.state(), state)
    assert int(state["step"]) == 2
    assert train(engine, RATES[2:], 2) == train(other, RATES[2:], 2)
    assert_same(other.state(), engine.state())


def test_what_is_handed_out_is_a_copy():
    engine = make()
    state, weights = engine.state(), engine.full_weights()
    kept = {name: value.clone() for name, value in state.items()}
    train(engine, RATES)
    assert_same(state, kept)
    assert not torch.equal(weights["0.weight"], engine.full_weights()["0.weight"])


@pytest.mark.parametrize("settings", [FP32, BF16])
def test_reset_is_a_new_engine(settings):
    engine = make(settings)
    train(engine, RATES)
    engine.reset(network(seed=1).state_dict())
    fresh = make(settings, seed=1)
    assert_same(engine.state(), fresh.state())
    assert not engine.state()["exp_avg/0.weight"].any()
    assert train(engine, RATES) == train(fresh, RATES)


def test_a_gradient_that_is_not_finite_updates_nothing():
    engine, untouched = make(), make()
    train(engine, RATES[:1])
    train(untouched, RATES[:1])
    engine.backward(engine(batch(1)).square().mean() * math.inf)
    assert not math.isfinite(engine.step(1e-2))
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(parameter, dict(untouched.module.named_parameters())[name])
    assert int(engine.state()["step"]) == 1
    assert math.isfinite(train(engine, RATES[:1])[0])  # the bad gradient is gone


def test_bf16_computes_low_and_keeps_high():
    engine = make(BF16)
    exact = {name: value.clone() for name, value in network().state_dict().items()}
    assert_same(engine.full_weights(), exact)  # master weights are not rounded
    output = engine(batch(0))
    assert output.dtype == torch.float32
    assert engine.module[0].weight.dtype == torch.bfloat16
    train(engine, [1e-6])  # far below what bf16 weights could resolve
    moved = engine.full_weights()["0.weight"] - exact["0.weight"]
    assert 0 < moved.abs().max() < 2e-6
    torch.testing.assert_close(engine.module[0].weight, engine.full_weights()["0.weight"].bfloat16(), rtol=0, atol=0)


def test_input_gradients_on_a_copy_leave_training_alone():
    engine, undisturbed = make(), make()
    sampler = copy.deepcopy(network())
    sampler.load_state_dict(engine.full_weights())
    inputs = batch(0).requires_grad_()
    torch.autograd.grad(sampler(inputs).sum(), inputs)
    assert train(engine, RATES) == train(undisturbed, RATES)


def test_a_state_of_another_network_is_refused():
    state = make().state()
    smaller = make_engine(nn.Linear(3, 1), OptimizerSettings(1e-3, (0.9, 0.99)), FP32, World.alone())
    with pytest.raises(ConfigError, match="another network"):
        smaller.load_state(state)
    state["exp_avg/0.weight"] = torch.zeros(6, 4)
    with pytest.raises(ConfigError, match=r"exp_avg/0\.weight"):
        make().load_state(state)


def test_frozen_and_low_precision_parameters_are_refused():
    module = network()
    module[1].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1\.bias"):
        make_engine(module, OptimizerSettings(1e-3, (0.9, 0.99)), FP32, World.alone())
    with pytest.raises(ValueError, match="float32"):
        make_engine(network().bfloat16(), OptimizerSettings(1e-3, (0.9, 0.99)), FP32, World.alone())


def test_without_deepspeed_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.delitem(sys.modules, "ebmscale.training.engine_deepspeed", raising=False)
    with pytest.raises(ConfigError, match="pip install deepspeed"):
        make(EngineSettings("deepspeed"))
