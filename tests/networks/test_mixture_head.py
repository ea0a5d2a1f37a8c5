"""The mixture head of the ratio network, and ratio networks side by side."""

import math

import pytest
import torch

from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.networks import RatioNet, RatioNets, build_ratio_net, count_parameters, initialise
from ebmscale.networks.ratio_net import MixtureHead


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(seed: int, components: int = 3) -> RatioNet:
    """A network with a mixture of rank 2 whose every weight is away from zero, as after training."""
    net = build_ratio_net(4, (8,), num_components=components, rank=2, generator=generator(seed))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(seed + 1)))
    return net


def test_it_is_the_log_mean_of_bumps_in_float64() -> None:
    head = MixtureHead(3, 2, 2).double()
    initialise(head, generator(0))
    with torch.no_grad():
        head.scale.weight.fill_(1.7)
        head.roots.bias.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4]))
        head.linear.bias.copy_(torch.tensor([0.5, -1.0]))
    z = torch.randn(5, 3, generator=generator(1), dtype=torch.float64)
    for point, value in zip(z, head(z), strict=True):
        bumps = []
        for c in range(2):
            root = head.roots.weight[2 * c : 2 * c + 2] @ point + head.roots.bias[2 * c : 2 * c + 2]
            line = head.linear.weight[c] @ point + head.linear.bias[c]
            bumps.append(math.exp((line - root.square().sum() / 2).item()))
        assert float(value) == pytest.approx(1.7 * math.log(sum(bumps) / 2), abs=1e-12)


@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 3, 4)])
def test_the_network_with_a_mixture_starts_as_the_zero_function_and_returns_to_it(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, generator=generator(0)) * 10
    net = build_ratio_net(4, (8,), num_components=3, rank=2, generator=generator(0))
    assert torch.equal(net(z), torch.zeros(shape[:-1]))
    net = trained(0)
    assert net(z).abs().min() > 0
    initialise(net, generator(1))
    assert not net(z).any()


def test_gradients_reach_the_scale_from_the_start_and_everything_after_it() -> None:
    net = build_ratio_net(4, (8,), num_components=3, rank=2, generator=generator(0))
    z = torch.randn(6, 4, generator=generator(1))
    net(z).sum().backward()
    assert net.mixture is not None
    assert net.mixture.scale.weight.grad.abs() > 0
    net = trained(0)
    net(z).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_weights_come_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, other = (
        build_ratio_net(4, num_components=3, generator=generator(seed)).state_dict() for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["mixture.roots.weight"], other["mixture.roots.weight"])


def test_several_stages_of_mixtures_are_evaluated_together() -> None:
    nets = [trained(seed) for seed in range(3)]
    prior = RatioSequence(StandardNormal(4), nets[0])
    for net in nets:
        prior = prior.append(net.state_dict())
    z = torch.randn(6, 4, generator=generator(2))
    torch.testing.assert_close(prior.log_ratios(z), torch.stack([net(z) for net in nets]).detach())
    exact = torch.autograd.functional.jacobian(lambda point: prior.log_density(point).sum(), z)
    torch.testing.assert_close(prior.score(z), exact)


def test_networks_side_by_side_are_the_stages_of_their_stacked_weights() -> None:
    nets = RatioNets([trained(seed) for seed in range(2)])
    prior = RatioSequence(StandardNormal(4), nets.nets[0], nets.stacked(nets.state_dict()))
    z = torch.randn(6, 4, generator=generator(3))
    torch.testing.assert_close(prior.log_ratios(z), nets(z.expand(2, -1, -1)).detach())
    assert count_parameters(nets) == 2 * count_parameters(trained(0))
