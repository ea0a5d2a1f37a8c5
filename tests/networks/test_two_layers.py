"""Two layers of latents: a start as one layer, the map itself, gradients, the forms of the generator in chains."""

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ebmscale.kernels.batch_inner import BatchInnerGenerator
from ebmscale.networks import TwoLayerGenerator, build, count_parameters, image_generator
from ebmscale.networks.two_layers import HIDDEN, TwoLayers

SHAPE = (1, 8, 8)
DIM, TOP = 6, 2


def two_layers(form: str | None = None) -> TwoLayerGenerator:
    made = build(lambda: image_generator(DIM, SHAPE, 4, form, TOP), torch.Generator().manual_seed(0))
    assert isinstance(made, TwoLayerGenerator)
    return made


def moved(model: TwoLayerGenerator) -> TwoLayerGenerator:
    """The model after training has moved every weight."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=noise))
    return model


@pytest.mark.parametrize("form", [None, "residual"])
def test_it_starts_as_one_layer(form: str | None) -> None:
    model, u = two_layers(form), torch.randn(5, DIM)
    assert torch.equal(model(u), model.network(u))


def test_the_lower_layer_is_gaussian_given_the_upper_one() -> None:
    model = moved(two_layers()).two_layers.double()
    u = torch.randn(1, DIM, dtype=torch.float64)
    z = model(u)
    assert torch.equal(z[:, :TOP], u[:, :TOP])
    at_zero = model(torch.cat([u[:, :TOP], torch.zeros(1, DIM - TOP)], 1))[:, TOP:]
    at_one = model(torch.cat([u[:, :TOP], torch.ones(1, DIM - TOP)], 1))[:, TOP:]
    torch.testing.assert_close(z[:, TOP:], at_zero + (at_one - at_zero) * u[:, TOP:])
    assert (at_one > at_zero).all()


def test_parameter_count() -> None:
    inner = (TOP + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * 2 * (DIM - TOP)
    assert count_parameters(TwoLayers(DIM, TOP)) == inner


def test_gradients_reach_the_latent_and_every_parameter() -> None:
    model, u = moved(two_layers()), torch.randn(3, DIM, requires_grad=True)
    model(u).square().sum().backward()
    assert u.grad is not None
    assert (u.grad != 0).all()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_batch_inner_computes_it_as_weights_change() -> None:
    model = moved(two_layers()).requires_grad_(False).double()
    assert BatchInnerGenerator.supports(model)
    assert not BatchInnerGenerator.supports(two_layers("residual"))
    other, u = BatchInnerGenerator(model), torch.randn(7, DIM, dtype=torch.float64)
    torch.testing.assert_close(other(u), model(u), rtol=1e-9, atol=1e-9)
    before = parameters_to_vector(model.parameters())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.3)
    other.load(model)
    assert not torch.equal(before, parameters_to_vector(model.parameters()))
    torch.testing.assert_close(other(u), model(u), rtol=1e-9, atol=1e-9)
