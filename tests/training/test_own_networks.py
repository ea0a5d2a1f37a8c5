"""Networks of a user's own, by the path of their class: trained, stopped, resumed, frozen, exported, opened."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ebmscale
from ebmscale.config import RunConfig, parse_config
from ebmscale.errors import ConfigError
from ebmscale.model.run_folder import run_storage
from ebmscale.storage import Storage
from tests.training.test_resume import final_files, run_until

SOURCE = """
import torch
from torch import nn


class Decoder(nn.Module):
    def __init__(self, width: int = 8, size: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, size * size), nn.Tanh())
        self.size = size

    def forward(self, z):
        return self.layers(z).view(-1, 1, self.size, self.size)


class Encoder(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.SiLU(), nn.Linear(width, 8))

    def forward(self, x):
        mean, log_std = self.layers(x).chunk(2, 1)
        return mean, log_std.clamp(-5, 2)


class Ratio(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, z):
        return self.layers(z).squeeze(1)


class Noisy(Ratio):
    def forward(self, z):
        return super().forward(z) * float("nan")


class Wide(Ratio):
    def forward(self, z):
        return self.layers(z)
"""
OWN = """
model:
  latent_dim: 4
  generator: {class: "MODULE:Decoder"}
  encoder: {class: "MODULE:Encoder", args: {width: 12}}
  ratio: {class: "MODULE:Ratio"}
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request) -> str:
    """The name of a module in the working directory."""
    name = f"networks_{abs(hash(request.node.name)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def own(tiny_text: str, module: str, *overrides: str) -> RunConfig:
    lines = [line for line in tiny_text.splitlines() if not line.startswith("model:")]
    text = "\n".join(lines) + OWN.replace("MODULE", module)
    return parse_config(text, ["posterior.start=encoder", "posterior.num_steps=0", *overrides])


def loaded(config: RunConfig) -> ebmscale.LatentModel:
    return ebmscale.load(str(run_storage(config).url))


def test_two_interruptions_change_nothing(tiny_text, module):
    whole, parts = own(tiny_text, module, "run.name=whole"), own(tiny_text, module, "run.name=parts")
    run_until(whole)
    run_until(parts, 1000)
    run_until(parts, 2000)
    run_until(parts)
    assert final_files(parts) == final_files(whole)
    model = loaded(whole)
    assert type(model.networks.generator.network).__name__ == "Decoder"
    assert model.sample(3).shape == (3, 1, 8, 8)
    model.export(Storage.at("export"))
    assert torch.equal(ebmscale.load("export").sample(3), model.sample(3))


def test_a_changed_source_is_refused_unless_it_is_allowed(tiny_text, module):
    run_until(own(tiny_text, module), 640)
    file = Path(f"{module}.py")
    file.write_text(file.read_text() + "\n# other\n")
    sys.modules.pop(module)
    with pytest.raises(ConfigError, match=rf"source of {module}:Decoder is not the one .* model.accept_changed=true"):
        run_until(own(tiny_text, module))
    run_until(own(tiny_text, module, "model.accept_changed=true"), 1280)


def test_a_pretrained_pair_stays_as_it_is(tiny_text, module):
    first = own(tiny_text, module, "run.name=first", "train.max_samples=640")
    run_until(first)
    networks = loaded(first).networks
    save_file(networks.generator.network.state_dict(), "decoder.safetensors")
    torch.save(networks.encoder.network.state_dict(), "encoder.pt")
    frozen = own(
        tiny_text,
        module,
        "run.name=frozen",
        "model.generator.train=false",
        "model.encoder.train=false",
        "model.generator.weights=decoder.safetensors",
        "model.encoder.weights=encoder.pt",
        "stages.start_samples=320",
        "train.max_samples=1600",
    )
    run_until(frozen, 960)
    Path("decoder.safetensors").unlink()  # the checkpoint has it
    run_until(frozen)
    model = loaded(frozen)
    for name, weight in networks.state_dict().items():
        assert torch.equal(model.networks.state_dict()[name], weight)
    assert model.prior.num_stages > 0


@pytest.mark.parametrize("still", ["generator", "encoder"])
def test_one_of_the_two_may_stay_as_it_is(still, tiny_text, module):
    config = own(tiny_text, module, f"model.{still}.train=false", "train.max_samples=640")
    start = ebmscale.model.build.build_model(config, (1, 8, 8)).state_dict()
    run_until(config)
    end = loaded(config).networks.state_dict()
    same = {name.partition(".")[0] for name in start if torch.equal(start[name], end[name])}
    moved = {name.partition(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert (same, moved) == ({still}, {"generator", "encoder"} - {still})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.generator.class=MODULE:Nothing", "has no network Nothing; it has Decoder, Encoder, Ratio"),
        (
            "model.generator.class=no_such_module:Decoder",
            "no module no_such_module .* start where no_such_module.py lies",
        ),
        ("model.generator.args={depth: 3}", "cannot be made with .depth=3.: TypeError"),
        ("model.generator.args={size: 4}", r"gives \(2, 1, 4, 4\) where a sample needs \(B, 1, 8, 8\)"),
        ("model.latent_dim=5", "where a latent needs|fails on latents"),
        ("model.ratio.class=MODULE:Wide", r"gives \(2, 1\) where one value a latent needs \(B,\)"),
        ("model.ratio.class=MODULE:Noisy", "not finite"),
        ("model.generator.weights=missing.pt", "there is no file"),
        ("model.generator.class=Decoder", "pattern"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(override, says, tiny_text, module):
    with pytest.raises(ConfigError, match=says):
        run_until(own(tiny_text, module, override.replace("MODULE", module)))
    assert not Path("runs/tiny/config.yaml").exists()


def test_a_module_that_fails_on_import_is_refused(tiny_text, module):
    Path(f"{module}.py").write_text("raise RuntimeError('not today')")
    with pytest.raises(ConfigError, match="cannot be imported: RuntimeError: not today"):
        run_until(own(tiny_text, module))


def test_weights_of_another_network_and_pickled_objects_are_refused(tiny_text, module):
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, "other.pt")
    with pytest.raises(ConfigError, match="does not hold the weights of Decoder"):
        run_until(own(tiny_text, module, "model.generator.weights=other.pt"))
    torch.save(Path, "objects.pt")
    with pytest.raises(ConfigError, match="not a file of tensors alone"):
        run_until(own(tiny_text, module, "model.generator.weights=objects.pt"))
