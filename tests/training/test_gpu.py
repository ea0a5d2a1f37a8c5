import pytest
import torch

from ebmscale.config import RunConfig, parse_config
from ebmscale.density.bases import MomentBase
from ebmscale.model.load import load
from ebmscale.stop import StopSignal
from ebmscale.training.loop import train
from ebmscale.training.view import View
from ebmscale.world import World

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_trains_on_a_gpu(tiny: RunConfig, engine: str, precision: str) -> None:
    config = tiny.model_copy(update={"engine": engine, "precision": precision, "device": "cuda"})
    url = train(config, View(quiet=True), World.from_environment("cuda"), StopSignal())
    model = load(url)
    assert model.samples_seen == config.train.max_samples
    assert model.sample(4).isfinite().all()


def test_a_fitted_base_trains_on_a_gpu(tiny_text: str) -> None:
    """Mixtures that are fitted to an encoder's posteriors, ratios with squares on them, frozen by `tilt`."""
    config = parse_config(
        tiny_text,
        [
            "device=cuda",
            "model.ratio.squares=true",
            "data.flip=true",
            "posterior={start: encoder, num_steps: 0}",
            "prior.base=moments",
            "prior.base_components=3",
            "prior.base_fits=2",
            "prior.equilibrate=tilt",
            "stages.start_samples=640",
            "train.generator.encoder_factor=1.0",
        ],
    )
    url = train(config, View(quiet=True), World.from_environment("cuda"), StopSignal())
    model = load(url).to("cuda")
    assert isinstance(model.prior.base, MomentBase)
    assert model.prior.num_stages
    assert model.sample(4).isfinite().all()
