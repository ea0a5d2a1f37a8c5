"""The forms of generator and encoder in a whole run: training, resume bit for bit, export, plan and dry run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_topologies import WORKER

import ebmscale
from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError
from ebmscale.forecast.footprint import EngineChoice
from ebmscale.forecast.memory import forecast_memory
from ebmscale.model.build import build_on_meta
from ebmscale.model.noise_level import START
from ebmscale.model.pieces import whole_spans
from ebmscale.model.run_folder import run_storage
from ebmscale.networks import ResidualGenerator, TwoLayerGenerator, count_parameters
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore
from tests.conftest import PATIENCE_S
from tests.training.test_resume import EVENTS_FILE, changed, final_files, history, run_until

MODELS: dict[str, dict[str, Any]] = {
    "residual": {"generator": {"form": "residual", "width": 2}},
    "two layers": {"generator": {"width": 2, "top": 2}},
    "residual, two layers": {"generator": {"form": "residual", "width": 2, "top": 1}, "sigma": "auto"},
}


def of_form(tiny: RunConfig, name: str, **blocks: dict[str, Any]) -> RunConfig:
    return changed(tiny, run={"name": name.replace(", ", "-").replace(" ", "-")}, model=MODELS[name], **blocks)


@pytest.mark.parametrize(
    ("name", "start"), [("residual, two layers", "encoder"), pytest.param("residual", "base", marks=pytest.mark.slow)]
)
def test_an_interruption_changes_nothing(tiny: RunConfig, name: str, start: str) -> None:
    short = {"posterior": {"start": start}, "train": {"max_samples": 960}, "checkpoint": {"every_samples": 480}}
    straight = of_form(tiny, name, **short)
    broken = changed(straight, run={"name": "broken"})
    run_until(straight)
    run_until(broken, stop_after=704)
    run_until(broken)
    assert final_files(broken) == final_files(straight)
    errors = [event["held_out_mse"] for event in history(straight, EVENTS_FILE)]
    assert errors[-1] < 0.95 * errors[0]


def test_a_run_is_loaded_and_exported(tiny: RunConfig, tmp_path: Path) -> None:
    config = of_form(tiny, "residual, two layers", train={"max_samples": 640}, posterior={"start": "encoder"})
    run_until(config)
    model = ebmscale.load(run_storage(config).url)
    assert isinstance(model.networks.generator, TwoLayerGenerator)
    assert isinstance(model.networks.generator.network, ResidualGenerator)
    model.export(Storage.at(tmp_path / "export"))
    other = ebmscale.load(tmp_path / "export")
    x = model.sample(3, seed=1)
    assert x.shape == (3, 1, 8, 8)
    assert torch.equal(other.sample(3, seed=1), x)
    assert torch.equal(other.encode(x), model.encode(x))
    assert model.sigma == other.sigma != START


@pytest.mark.parametrize("name", MODELS)
def test_plans_count_the_networks(tiny: RunConfig, name: str) -> None:
    config = of_form(tiny, name)
    networks, _ = build_on_meta(config, (1, 8, 8))
    memory = forecast_memory(config, (1, 8, 8), 1797, EngineChoice(None), 1)
    assert memory.kept["sampling copy"] == 4 * count_parameters(networks)
    assert (memory.kept["its form in chains"] > 0) == (name == "two layers")
    assert memory.passing["posterior"] > 0


@pytest.mark.parametrize(
    ("generator", "said"),
    [({"top": 4}, "must be below latent_dim"), ({"top": 1, "class": "own:Net"}, "for generators of this package")],
)
def test_layers_that_cannot_be_are_refused(tiny: RunConfig, generator: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changed(tiny, model={"generator": generator})


def test_a_form_that_does_not_fit_is_refused_before_anything_is_written(tiny: RunConfig) -> None:
    config = changed(tiny, model={"generator": {"form": "mnist"}})
    with pytest.raises(ConfigError, match="makes images of 28x28"):
        run_until(config)
    assert not CheckpointStore(run_storage(config)).finished()


@pytest.mark.deepspeed
def test_workers_and_engines_share_a_run(tiny: RunConfig, tmp_path: Path) -> None:
    """A run that goes on with two ranks learns what one rank does, and ZeRO 3 saves what it loads bit for bit."""
    short = {"train": {"max_samples": 640}, "checkpoint": {"keep_last": 9}}
    alone = of_form(tiny, "residual, two layers", **short)
    shared = changed(alone, run={"name": "shared"})
    run_until(alone)
    run_until(shared, stop_after=320)
    file = tmp_path / "shared.yaml"
    file.write_text(shared.dump())
    subprocess.run(
        [sys.executable, str(WORKER), str(file), "2=train,zero3,plain"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=PATIENCE_S, check=True, capture_output=True,
    )  # fmt: skip
    wanted, state = tensors_and_state(alone)[-1]
    _, trained, *saved = tensors_and_state(shared)
    assert trained[1]["mean_square"] == pytest.approx(state["mean_square"], rel=1e-4)
    for name, value in wanted.items():
        torch.testing.assert_close(trained[0][name], value, rtol=1e-3, atol=1e-3)
    assert len(saved) == 2
    for weights, values in saved:
        assert values["mean_square"] == trained[1]["mean_square"]
        assert all(torch.equal(weights[name], value) for name, value in trained[0].items())


def tensors_and_state(config: RunConfig) -> list[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """The generator's weights and the plain values of every checkpoint, the oldest first."""
    store, found = CheckpointStore(run_storage(config)), []
    for name in reversed(store.finished()):
        saved = store.open(name)
        tensors = saved.read("generator", whole_spans(saved.shapes("generator")))
        weights = {span.name: value for span, value in tensors.items() if span.name.startswith("weights")}
        found.append((weights, saved.values("state")))
    return found
