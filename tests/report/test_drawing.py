"""Every method of sampling against a prior that is a known Gaussian, and its diagnostics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from ebmscale.cli import cli
from ebmscale.config import RunConfig
from ebmscale.density.langevin import LangevinSettings
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.errors import ConfigError
from ebmscale.evaluate.sampling import chain_diagnostics, draw, pareto_k
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.model.latent_model import LatentModel
from ebmscale.storage import Storage

MEAN = 1.2


class Bowl(nn.Module):
    """-|z - m|^2 / 2, so that N(0, I) becomes N(m / 2, I / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return -0.5 * self.weight * (z - MEAN).square().sum(-1)


@pytest.fixture
def model(tiny: RunConfig) -> LatentModel:
    prior = RatioSequence(StandardNormal(tiny.model.latent_dim), Bowl()).append(Bowl().state_dict())
    tiny = tiny.model_copy(update={"prior": tiny.prior.model_copy(update={"sample_steps": 60})})
    return LatentModel(tiny, build_model(tiny, (1, 8, 8)), prior, (1, 8, 8), 0)


@pytest.mark.parametrize("method", ["auto", "chain", "smc", "sir"])
def test_samples_have_the_priors_moments(model: LatentModel, method: str) -> None:
    drawn = draw(model, 1000, method, seed=1)
    assert drawn.z.shape == (1000, 4)
    assert float((drawn.z.mean(0) - MEAN / 2).abs().max()) < 5 * (0.5 / 1000) ** 0.5
    assert float(drawn.z.var(0).mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(draw(model, 1000, method, seed=1).z, drawn.z)
    assert not torch.equal(draw(model, 1000, method, seed=2).z, drawn.z)
    assert len(drawn.lines()) == len(drawn.diagnostics) + 1 > 4
    assert draw(model, 10, method, num_stages=0).z.shape == (10, 4)


def test_pareto_k_of_weights_whose_tail_is_known() -> None:
    """Weights e^(k x) with x exponential have a Pareto tail of shape k."""
    x = torch.empty(20_000, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(0))
    for shape in (0.3, 0.8):
        assert pareto_k(shape * x) == pytest.approx(shape, abs=0.15)


def test_both_exact_methods_agree_on_the_normaliser(model: LatentModel) -> None:
    """log Z = (d/2) log(1/2) - d m^2 / 4."""
    expected = -2 * 0.6931472 - MEAN**2
    for method in ("smc", "sir"):
        found = draw(model, 10, method).diagnostics
        assert found["log Z"] == pytest.approx(expected, abs=5 * found["log Z standard error"])


def test_the_diagnostics_tell_chains_that_mix_from_chains_that_do_not(model: LatentModel) -> None:
    generator = torch.Generator().manual_seed(0)
    z = MEAN / 2 + 0.5**0.5 * torch.randn(64, 4, generator=generator)
    good = chain_diagnostics(model.prior, z, LangevinSettings(50, 0.5))
    assert good["largest R-hat"] < 1.05
    assert good["least effective sample size"] > 200
    assert 0.7 < good["acceptance"] < 1
    assert abs(good["drift of the log density (standard deviations)"]) < 4 * good["drift's standard error"]
    stuck = chain_diagnostics(model.prior, 5 * z, LangevinSettings(50, 0.02))
    assert stuck["largest R-hat"] > 2
    assert stuck["drift of the log density (standard deviations)"] > 4 * stuck["drift's standard error"] > 0
    coarse = chain_diagnostics(model.prior, z, LangevinSettings(5, 1.9))
    assert coarse["acceptance"] < good["acceptance"]


def test_an_unknown_method_is_refused(model: LatentModel) -> None:
    with pytest.raises(ConfigError, match="chain, smc, sir"):
        draw(model, 3, "gibbs")


def test_a_model_knows_its_normalised_log_prior(model: LatentModel) -> None:
    z = torch.zeros(2, 4)
    found = model.log_normaliser()
    exact = torch.distributions.Normal(MEAN / 2, 0.5**0.5).log_prob(z).sum(1)
    torch.testing.assert_close(model.log_prior(z, found), exact, rtol=0, atol=5 * found.error)
    assert torch.equal(replace(model).log_prior(z), model.prior.log_density(z))


@pytest.mark.parametrize(("method", "words"), [("chain", "R-hat"), ("smc", "stepping stones"), ("sir", "Pareto k")])
def test_the_command_says_how_far_to_trust_its_samples(
    model: LatentModel, tmp_path: Path, method: str, words: str
) -> None:
    network = build_ratio_network(model.config)
    ratio = {name: weight + 0.1 for name, weight in network.state_dict().items()}
    prior = RatioSequence(model.prior.base, network).append(ratio)
    replace(model, prior=prior).export(Storage.at(tmp_path / "model"))
    arguments = ["sample", str(tmp_path / "model"), "-n", "5", "--method", method, "--out", str(tmp_path / "x.npz")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert words in done.output
    assert np.load(tmp_path / "x.npz")["z"].shape == (5, 4)
