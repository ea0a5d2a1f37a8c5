import pytest
import torch

from ebmscale.config import RunConfig
from ebmscale.training.guard import StopSignal
from ebmscale.training.loop import train
from ebmscale.training.model import load
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
