"""The ratio sequence against its networks one by one, autograd and finite differences, in float64."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ebmscale.density.langevin import LangevinSettings, run_chain, start
from ebmscale.density.prior import POWER, RatioSequence, StandardNormal, stacked_stages

DIM, STAGES = 3, 4


class Network(nn.Module):
    """A small smooth function z (N, Z) -> (N,)."""

    def __init__(self, seed: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).squeeze(1)


NETWORKS = [Network(seed) for seed in range(STAGES)]


@pytest.fixture
def prior() -> RatioSequence:
    sequence = RatioSequence(StandardNormal(DIM), Network(99))
    for network in NETWORKS:
        sequence = sequence.append(network.state_dict())
    return sequence


@pytest.fixture
def z() -> Tensor:
    return torch.randn(50, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_base_is_torchs_normal(z: Tensor) -> None:
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(StandardNormal(DIM).log_density(z), expected)


def test_without_stages_the_prior_is_the_base(z: Tensor) -> None:
    prior = RatioSequence(StandardNormal(DIM), Network(0))
    assert prior.num_stages == 0
    assert prior.log_ratios(z).shape == (0, 50)
    torch.testing.assert_close(prior.log_density(z), StandardNormal(DIM).log_density(z))
    torch.testing.assert_close(prior.score(z), -z)


def test_the_batched_networks_equal_the_single_ones(prior: RatioSequence, z: Tensor) -> None:
    each = torch.stack([network(z) for network in NETWORKS])
    torch.testing.assert_close(prior.log_ratios(z), each)
    torch.testing.assert_close(prior.log_density(z), StandardNormal(DIM).log_density(z) + each.sum(0))
    torch.testing.assert_close(prior.energy(z), -prior.log_density(z))


def test_score_is_autograds_gradient(prior: RatioSequence, z: Tensor) -> None:
    leaf = z.clone().requires_grad_(True)
    total = StandardNormal(DIM).log_density(leaf) + sum(network(leaf) for network in NETWORKS)
    (gradient,) = torch.autograd.grad(total.sum(), leaf)
    value, score = prior.evaluate(z)
    torch.testing.assert_close(score, gradient)
    torch.testing.assert_close(value, total.detach())


def test_score_is_the_finite_difference(prior: RatioSequence, z: Tensor) -> None:
    step = 1e-6 * torch.eye(DIM, dtype=torch.float64)
    slopes = [(prior.log_density(z + h) - prior.log_density(z - h)) / 2e-6 for h in step]
    torch.testing.assert_close(prior.score(z), torch.stack(slopes, dim=1), rtol=1e-6, atol=1e-7)


def test_append_leaves_the_original_as_it_was(prior: RatioSequence, z: Tensor) -> None:
    before, weights = prior.log_density(z), copy.deepcopy(prior.weights)
    longer = prior.append(Network(7).state_dict())
    assert (prior.num_stages, longer.num_stages) == (STAGES, STAGES + 1)
    assert torch.equal(prior.log_density(z), before)
    assert all(torch.equal(prior.weights[name], weights[name]) for name in weights)
    torch.testing.assert_close(longer.log_density(z), before + Network(7)(z).detach())


def test_a_frozen_ratio_does_not_follow_the_network_it_came_from(z: Tensor) -> None:
    network = Network(0)
    prior = RatioSequence(StandardNormal(DIM), network).append(network.state_dict())
    before = prior.log_density(z)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert torch.equal(prior.log_density(z), before)


def test_a_prefix_is_the_prior_of_an_earlier_stage(prior: RatioSequence, z: Tensor) -> None:
    before = prior.log_density(z)
    for k in range(STAGES + 1):
        part = prior.prefix(k)
        assert part.num_stages == k
        expected = StandardNormal(DIM).log_density(z) + sum((n(z).detach() for n in NETWORKS[:k]), torch.zeros(50))
        torch.testing.assert_close(part.log_density(z), expected)
    assert torch.equal(prior.log_density(z), before)
    for k in (-1, STAGES + 1):
        with pytest.raises(ValueError, match="no prefix"):
            prior.prefix(k)


def test_stage_weights_are_the_state_dicts_that_were_appended(prior: RatioSequence) -> None:
    for stage, network in enumerate(NETWORKS, start=1):
        frozen = prior.stage_weights(stage)
        assert frozen.keys() == network.state_dict().keys()
        assert all(torch.equal(frozen[name], tensor) for name, tensor in network.state_dict().items())


def test_a_stage_may_raise_the_prior_before_it_to_a_power(z: Tensor) -> None:
    """log p_k = b_k log p_{k-1} + f_k, stage by stage; a prefix is p_k, and nothing is lost when it is stored."""
    powers = [1.3, 1.0, 0.8, 1.1][:STAGES]
    sequence = RatioSequence(StandardNormal(DIM), Network(99))
    expected = StandardNormal(DIM).log_density(z)
    for network, power in zip(NETWORKS, powers, strict=True):
        sequence = sequence.append(network.state_dict(), power)
        expected = power * expected + network(z).detach()
        torch.testing.assert_close(sequence.log_density(z), expected)
    torch.testing.assert_close(sequence.log_weight(z), expected - StandardNormal(DIM).log_density(z))
    again = RatioSequence(StandardNormal(DIM), Network(99), sequence.tensors)
    stored = [sequence.stage_tensors(k + 1) for k in range(STAGES)]
    assert [POWER in one for one in stored] == [power != 1 for power in powers]
    of_stages = RatioSequence(StandardNormal(DIM), Network(99), stacked_stages(stored))
    for copied in (again, of_stages, sequence.to("cpu"), sequence.on_base(StandardNormal(DIM))):
        assert torch.equal(copied.log_density(z), sequence.log_density(z))
    expected = StandardNormal(DIM).log_density(z)
    for k, (network, power) in enumerate(zip(NETWORKS, powers, strict=True), start=1):
        expected = power * expected + network(z).detach()
        torch.testing.assert_close(sequence.prefix(k).log_density(z), expected)
    torch.testing.assert_close(sequence.last().log_weight(z), NETWORKS[-1](z).detach())
    assert sequence.prefix(0).powers is None


def test_no_parameter_gradient_in_a_chain(prior: RatioSequence, z: Tensor) -> None:
    noise = torch.randn(50, 5, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    end, _ = run_chain(prior.evaluate, start(prior.evaluate, z), noise, LangevinSettings(5, 0.1))
    assert not any(tensor.requires_grad for tensor in (*end, *prior.weights.values()))
    assert not any(parameter.requires_grad for parameter in prior.network.parameters())
    assert all(parameter.grad is None for network in NETWORKS for parameter in network.parameters())


def test_the_normaliser_of_a_known_ratio_is_left_out() -> None:
    """f = z . a gives N(a, I) with log Z = |a|^2 / 2: log_density minus log Z is normalised."""
    network = nn.Sequential(nn.Linear(DIM, 1, bias=False), nn.Flatten(0)).double()
    a = network[0].weight.detach()[0]
    prior = RatioSequence(StandardNormal(DIM), network).append(network.state_dict())
    z = torch.zeros(1, DIM, dtype=torch.float64)
    expected = -0.5 * a.square().sum() - DIM / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(prior.log_density(z)[0] - 0.5 * a.square().sum(), expected)
