"""The ratio network: LEBM's size, its start at zero, stacked weights."""

import pytest
import torch

from ebmscale.errors import ConfigError
from ebmscale.networks import ACTIVATIONS, RatioNet, build_ratio_net, count_parameters, initialise
from ebmscale.networks.blocks import ZeroLinear
from ebmscale.networks.ratio_net import SQUARE_BOUND, WithSquares


def randomised(net: RatioNet, seed: int) -> RatioNet:
    """The network with its last layer no longer zero, as after training."""
    output = next(layer for layer in net.modules() if isinstance(layer, ZeroLinear))
    torch.nn.init.normal_(output.weight, generator=torch.Generator().manual_seed(seed))
    return net


def test_parameter_count_is_that_of_lebms_energy_network() -> None:
    assert count_parameters(RatioNet(100)) == 60_601


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 3, 4)])
def test_it_starts_as_the_zero_function(activation: str, shape: tuple[int, ...]) -> None:
    net = build_ratio_net(4, (16, 16), activation, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(torch.randn(shape) * 1e3), torch.zeros(shape[:-1]))


def test_initialise_returns_a_trained_network_to_zero() -> None:
    net = randomised(RatioNet(4), seed=0)
    initialise(net, torch.Generator().manual_seed(1))
    assert not net(torch.randn(5, 4)).any()


def test_gradient_reaches_z() -> None:
    net = randomised(build_ratio_net(4, generator=torch.Generator().manual_seed(0)), seed=1)
    z = torch.randn(5, 4, requires_grad=True)
    net(z).sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stacked_weights_under_vmap_equal_one_network_at_a_time(activation: str) -> None:
    nets = [
        randomised(build_ratio_net(4, (16, 16), activation, generator=torch.Generator().manual_seed(seed)), seed)
        for seed in range(3)
    ]
    stacked, _ = torch.func.stack_module_state(nets)
    z = torch.randn(5, 4)

    def log_ratio(weights: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(nets[0], weights, (z,))

    together = torch.vmap(log_ratio, in_dims=(0, None))(stacked, z)
    torch.testing.assert_close(together, torch.stack([net(z) for net in nets]))


def test_no_hidden_layer_gives_a_linear_log_ratio() -> None:
    assert count_parameters(RatioNet(4, hidden=())) == 5


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match="'relu'; use one of silu"):
        RatioNet(4, activation="relu")


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_times_scales_the_log_ratio(hidden: tuple[int, ...]) -> None:
    net = build_ratio_net(4, hidden, generator=torch.Generator().manual_seed(0))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    z = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    scaled = torch.func.functional_call(net, net.times(net.state_dict(), 0.3), (z,))
    torch.testing.assert_close(scaled, 0.3 * net(z))


def test_squares_are_seen_and_bounded() -> None:
    features = torch.tensor([[0.5, -2.0, 1e3]])
    units, squares = WithSquares()(features).chunk(2, dim=1)
    assert torch.equal(units, features)
    torch.testing.assert_close(squares, torch.tensor([[0.25, 4.0, SQUARE_BOUND]]), rtol=0.02, atol=0)


def test_with_squares_a_linear_last_layer_draws_a_quadratic() -> None:
    net = build_ratio_net(2, (3,), squares=True, generator=torch.Generator().manual_seed(0))
    z = 0.1 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    features = net.layers[:-1](z)
    design, wanted = torch.cat([features, torch.ones(200, 1)], 1), z.square().sum(1, keepdim=True)
    fitted = design @ torch.linalg.pinv(design) @ wanted
    torch.testing.assert_close(fitted, wanted, rtol=0, atol=1e-4)
