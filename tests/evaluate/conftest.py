import pytest
import torch
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.config import parse_config
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.model.latent_model import LatentModel
from ebmscale.storage import Storage
from tests.conftest import TINY

HELD_OUT = "data.held_out={label: 1, protocol: pooled}"


@pytest.fixture(scope="session")
def make_model(digits_url):
    """A function that makes a model of the digits with random weights and two stages, as a value."""

    def make(*overrides):
        config = parse_config(TINY.replace("DATA", digits_url), [f"data.url={digits_url}", *overrides])
        prior = RatioSequence(StandardNormal(config.model.latent_dim), build_ratio_network(config))
        source = torch.Generator().manual_seed(1)
        for _ in range(2):
            weights = prior.network.state_dict()
            prior = prior.append({key: torch.randn(w.shape, generator=source) * 0.3 for key, w in weights.items()})
        networks = build_model(config, (1, 8, 8)).requires_grad_(False)
        return LatentModel(config, networks, prior, (1, 8, 8), 640)

    return make


@pytest.fixture(scope="session")
def digits(digits_url):
    return Storage.at(digits_url)


@pytest.fixture(scope="session")
def classifier_url(digits_url, tmp_path_factory):
    """A classifier of the digits, trained by the command."""
    folder = tmp_path_factory.mktemp("features")
    options = ["--width", "8", "--epochs", "12", "--batch-size", "64"]
    done = CliRunner().invoke(cli, ["features", "train", digits_url, str(folder), *options])
    assert done.exit_code == 0, done.output
    assert "FD-digits-classifier: accuracy" in done.output
    return str(folder)
