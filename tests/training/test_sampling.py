"""The sampling copy follows the engine in whatever form it takes, and a run keeps the form that it began with."""

import pytest
import torch

from ebmscale.config import RunConfig
from ebmscale.model.image_model import ImageModel
from ebmscale.model.load import load
from ebmscale.networks import build_generator
from ebmscale.seeds import torch_generator
from ebmscale.stop import StopSignal
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.training.loop import train
from ebmscale.training.opening import open_run
from ebmscale.training.sampling import SamplingCopy
from ebmscale.training.view import View
from ebmscale.world import World

WORLD = World.alone()


@pytest.mark.parametrize("form", ["plain", "batch_inner"])
def test_a_refresh_brings_the_engines_weights(form: str) -> None:
    def network() -> ImageModel:
        return ImageModel(build_generator(4, (1, 8, 8), 2, generator=torch_generator(0, "test")), None)

    engine = make_engine(network(), OptimizerSettings(0.1, (0.5, 0.9)), EngineSettings(), WORLD)
    sampling = SamplingCopy(engine, network(), torch.float32, WORLD.device)
    sampling.use(form)  # type: ignore[arg-type]
    z, x = torch.randn(3, 4), torch.zeros(3, 1, 8, 8)
    before = sampling.model.generator(z)
    engine.backward(engine(z, x)[0].square().sum())
    engine.step(0.1)
    assert torch.equal(sampling.model.generator(z), before)
    sampling.refresh()
    torch.testing.assert_close(sampling.model.generator(z), engine(z, x)[0].detach())
    assert not torch.allclose(sampling.model.generator(z), before)


def test_a_run_trains_with_either_form_to_the_same_weights(tiny: RunConfig) -> None:
    models = []
    for kernel in ("plain", "batch_inner"):
        posterior = tiny.posterior.model_copy(update={"kernel": kernel})
        name = tiny.run.model_copy(update={"name": kernel})
        train_block = tiny.train.model_copy(update={"max_samples": 320})
        config = tiny.model_copy(update={"posterior": posterior, "run": name, "train": train_block})
        models.append(load(train(config, View(quiet=True), WORLD, StopSignal())))
    one, other = (model.networks.state_dict() for model in models)
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_keeps_the_form_it_began_with(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tiny, WORLD, StopSignal())
    run.sampling.use("batch_inner")
    run.save()
    run.saver.finish()
    run.close()
    monkeypatch.setattr("ebmscale.training.opening.choose_form", lambda *arguments: "plain")
    resumed = open_run(tiny, WORLD, StopSignal())
    assert resumed.sampling.form == "batch_inner"
    resumed.close()
