"""Random Fourier features as inputs of a perceptron: frequencies, seeds, stacked weights, and their effect."""

import math

import pytest
import torch

from ebmscale.errors import ConfigError
from ebmscale.networks import Bounded, initialise, set_bound, vector_ratio
from ebmscale.networks.blocks import MOST_FREQUENCY
from ebmscale.networks.ratio_heads import Waves
from ebmscale.ratios import FitSettings


def made(num_waves: int, seed: int = 0) -> torch.nn.Module:
    network = vector_ratio(2, (32, 32), "silu", quadratic=False, num_waves=num_waves)
    initialise(network, torch.Generator().manual_seed(seed))
    return network


def test_waves_are_the_coordinates_and_sines_of_frequencies_up_to_the_highest() -> None:
    waves = Waves(3, 9)
    initialise(waves, torch.Generator().manual_seed(0))
    z = torch.randn(4, 5, 3)
    assert torch.equal(waves(z)[..., :3], z)
    torch.testing.assert_close(waves(z)[..., 3:], (z @ waves.phases.weight.T + waves.phases.bias).sin())
    frequencies = waves.phases.weight.norm(dim=1).double()
    torch.testing.assert_close(
        frequencies.log(), torch.linspace(0, math.log(MOST_FREQUENCY), 9, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_a_seed_draws_the_same_waves_and_a_zero_function() -> None:
    z = torch.randn(5, 2)
    first, again, other = (made(8, seed) for seed in (0, 0, 1))
    assert not first(z).any()
    names = [name for name, _ in first.named_parameters()]
    assert all(torch.equal(first.get_parameter(name), again.get_parameter(name)) for name in names)
    assert not torch.equal(first[0].phases.weight, other[0].phases.weight)  # type: ignore[index,union-attr]


def test_without_waves_the_network_is_what_it_was() -> None:
    assert next(name for name, _ in made(0).named_parameters()) == "layers.0.weight"


def test_a_square_wave_is_learned_sooner() -> None:
    """Five periods near the centre of the standard normal: the loss after few updates, with waves and without."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4096, 2, generator=generator)
    target = (z[:, 0] * 8).sin().sign()
    losses = {}
    for num_waves in (0, 32):
        network = made(num_waves)
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(150):
            loss = (network(z) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[num_waves] = float(loss.detach())
    assert losses[32] < 0.5 * losses[0]


@pytest.mark.parametrize("settings", [{"waves": -1}, {"waves": 8, "hidden": (), "quadratic": True}])
def test_waves_that_nothing_sees_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="waves"):
        FitSettings(**settings)  # type: ignore[arg-type]


def test_a_bounded_ratio_keeps_zero_and_stays_below_its_bound() -> None:
    class Given(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z[..., 0]

    network = Bounded(Given())
    z = torch.tensor([-50.0, -3.0, 0.0, 3.0, 50.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(network(z), z[:, 0])
    set_bound(torch.nn.Sequential(network), 5.0)
    c = torch.tensor(5.0, dtype=torch.float64)
    exact = c - torch.nn.functional.softplus(c - z[:, 0]) + torch.log1p(torch.exp(-c))
    torch.testing.assert_close(network(z), exact, rtol=1e-6, atol=1e-6)
    assert abs(float(network(z)[2])) < 1e-6
    assert float(network(z).max()) < 5.01
