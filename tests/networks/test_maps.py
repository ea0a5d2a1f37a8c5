"""Latents that are maps: their ratio network, and a fitted base that leaves coordinates at their places."""

import pytest
import torch

from ebmscale.config import parse_config
from ebmscale.density.bases import MomentBase
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.density.roots import symmetric_root
from ebmscale.errors import ConfigError
from ebmscale.model.build import build_ratio_network
from ebmscale.model.prior_base import base_from
from ebmscale.networks import ResidualRatioNet, initialise

SHAPE = (2, 4, 6)


def random_covariance(dim: int) -> torch.Tensor:
    root = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root @ root.T / dim + 0.5 * torch.eye(dim, dtype=torch.float64)


@pytest.mark.parametrize("channels", [(8,), (4, 8, 16)])
def test_a_residual_ratio_starts_at_zero_and_takes_leading_axes(channels):
    network = ResidualRatioNet(SHAPE, channels)
    initialise(network, torch.Generator().manual_seed(0))
    z = torch.randn(5, 3, 48)
    assert torch.equal(network(z), torch.zeros(5, 3))
    torch.nn.init.ones_(network.layers[-1].weight)
    assert network(z).shape == (5, 3)
    assert torch.allclose(network(z)[2, 1], network(z[2, 1]), atol=1e-4)


def test_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"takes latents that are maps \(C, H, W\), not \[16\]"):
        ResidualRatioNet((16,))


def test_frozen_residual_stages_are_evaluated_together():
    text = """
run: {name: maps}
data: {url: nowhere}
model: {latent_shape: [2, 4, 6], ratio: {form: residual, hidden: [4, 4]}}
train: {max_samples: 100000}
"""
    network = build_ratio_network(parse_config(text))
    prior, z = RatioSequence(StandardNormal(48), network), torch.randn(7, 48)
    expected = []
    for seed in (1, 2):
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        noise = torch.Generator().manual_seed(seed)
        weights |= {n: torch.randn(v.shape, generator=noise) * 0.1 for n, v in weights.items() if "layers" in n}
        network.load_state_dict(weights)
        expected.append(network(z))
        prior = prior.append(weights)
    assert torch.allclose(prior.log_ratios(z), torch.stack(expected), atol=1e-5)


def test_a_symmetric_base_is_the_same_density_and_keeps_places():
    covariance, mean = random_covariance(6), torch.arange(6.0)
    root = symmetric_root(covariance)
    assert torch.allclose(root @ root, covariance)
    assert torch.allclose(root, root.T)
    base = MomentBase(mean, root.float())
    z = torch.randn(50, 6)
    exact = torch.distributions.MultivariateNormal(mean.double(), covariance).log_prob(z.double())
    assert torch.allclose(base.log_density(z).double(), exact, atol=1e-4)
    x = base.coordinates(z)
    assert torch.allclose(base.from_coordinates(x), z, atol=1e-4)
    inside = base.in_coordinates()
    assert torch.allclose(inside.log_density(x) - base.log_volume, base.log_density(z), atol=1e-4)
    again = base_from(6, base.tensors())
    assert torch.allclose(again.log_density(z), base.log_density(z))
    # moved alone, a coordinate moves its own whitened coordinate the most
    step = base.coordinates(mean + 0.1 * torch.eye(6)).abs()
    assert torch.equal(step.argmax(1), torch.arange(6))
