"""Seeded initialisation: a function of the given generator alone."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ebmscale.networks import build_encoder, build_generator, build_ratio_net, initialise
from ebmscale.networks.blocks import HE_GAIN, LatentToGrid

Builder = Callable[[torch.Generator], nn.Module]

BUILDERS: dict[str, Builder] = {
    "generator": lambda generator: build_generator(8, (1, 28, 28), 4, generator=generator),
    "encoder": lambda generator: build_encoder((1, 28, 28), 8, 4, generator=generator),
    "ratio_net": lambda generator: build_ratio_net(8, generator=generator),
}


def weights(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_depend_on_the_seed_and_not_on_global_state(name: str) -> None:
    torch.manual_seed(1)
    first = weights(BUILDERS[name](torch.Generator().manual_seed(7)))
    torch.manual_seed(2)
    second = weights(BUILDERS[name](torch.Generator().manual_seed(7)))
    other = weights(BUILDERS[name](torch.Generator().manual_seed(8)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", BUILDERS)
def test_building_leaves_the_global_generator_untouched(name: str) -> None:
    before = torch.get_rng_state()
    model = BUILDERS[name](torch.Generator().manual_seed(7))
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_initialise_overwrites_every_parameter(name: str) -> None:
    model = BUILDERS[name](torch.Generator().manual_seed(7))
    expected = weights(model).clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialise(model, torch.Generator().manual_seed(7))
    assert torch.equal(weights(model), expected)


def test_networks_in_a_row_from_one_generator_differ() -> None:
    generator = torch.Generator().manual_seed(7)
    assert not torch.equal(weights(BUILDERS["ratio_net"](generator)), weights(BUILDERS["ratio_net"](generator)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (LatentToGrid(64, 32, 4), (256, 64)),
        (nn.Linear(64, 256), (256, 64)),
        (nn.Conv2d(32, 64, 4, 2, 1), (16, 32, 32, 32)),
        (nn.ConvTranspose2d(32, 64, 4, 2, 1), (16, 32, 32, 32)),
    ],
)
def test_a_layer_scales_standard_normal_inputs_by_the_gain(layer: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    initialise(layer, generator)
    outputs = layer(torch.randn(shape, generator=generator))
    assert outputs.std().item() == pytest.approx(HE_GAIN, rel=0.08)
