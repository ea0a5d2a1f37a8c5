"""The residual form: any square size, gradients, parameter counts, a start that is stable and that learns at once."""

import pytest
import torch

from ebmscale.errors import ConfigError
from ebmscale.networks import Generator, build, count_parameters, image_encoder, image_generator
from ebmscale.networks.residual import ResidualEncoder, ResidualGenerator, levels_of


def generator_of(side: int, dim: int = 5, width: int = 4, channels: int = 3) -> torch.nn.Module:
    shape = (channels, side, side)
    return build(lambda: image_generator(dim, shape, width, "residual"), torch.Generator().manual_seed(0))


def encoder_of(side: int, dim: int = 5, width: int = 4, channels: int = 3) -> torch.nn.Module:
    shape = (channels, side, side)
    return build(lambda: image_encoder(shape, dim, width, "residual"), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [8, 9, 12, 16, 28, 32, 48, 65, 104, 248, 256])
def test_images_and_latents_have_the_shapes_asked_for(side: int) -> None:
    for channels in (1, 3):
        x = generator_of(side, channels=channels)(torch.randn(2, 5) * 100)
        assert x.shape == (2, channels, side, side)
        assert x.abs().max() <= 1
        mean, log_std = encoder_of(side, channels=channels)(x)
        assert mean.shape == log_std.shape == (2, 5)


@pytest.mark.parametrize(
    ("side", "levels"),
    [
        (8, [(4, 4)]),
        (28, [(8, 7), (4, 14)]),
        (32, [(8, 8), (4, 16)]),
        (100, [(32, 7), (16, 13), (8, 25), (4, 50)]),
        (256, [(32, 8), (32, 16), (16, 32), (8, 64), (4, 128)]),
    ],
)
def test_levels_halve_down_to_the_first_grid(side: int, levels: list[tuple[int, int]]) -> None:
    assert levels_of(side, 4) == levels


def test_parameter_counts() -> None:
    with torch.device("meta"):
        generator, encoder = ResidualGenerator(128, (3, 32, 32), 32), ResidualEncoder((3, 32, 32), 128, 24)
    grid = 128 * 64 * 64 + 64
    blocks = 2 * (9 * 64 * 64 + 64) + 2 * (9 * 32 * 32 + 32)
    assert count_parameters(generator) == grid + blocks + (64 * 32 + 32) + (9 * 32 * 12 + 12)
    first, second = (9 * 12 * 24 + 24) + 2 * (9 * 24 * 24 + 24), (4 * 24 * 48 + 48) + 2 * (9 * 48 * 48 + 48)
    assert count_parameters(encoder) == first + second + (64 * 48 * 256 + 256)


def test_gradients_reach_inputs_and_every_parameter() -> None:
    generator, encoder = generator_of(17), encoder_of(17)
    with torch.no_grad():  # what starts at zero passes no gradient on
        for parameter in (*generator.parameters(), *encoder.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    z = torch.randn(3, 5, requires_grad=True)
    x = generator(z)
    mean, log_std = encoder(x)
    (mean.square().sum() + log_std.square().sum()).backward()
    assert z.grad is not None
    assert (z.grad != 0).all()
    for parameter in (*generator.parameters(), *encoder.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.any()


@pytest.mark.parametrize(
    ("side", "dim", "sigma"),
    [(16, 16, 0.3), (32, 16, 0.3), (32, 128, 0.3), (64, 64, 0.2), (128, 16, 0.2), (256, 8, 0.2)],
)
def test_a_posterior_chain_starts_stable(side: int, dim: int, sigma: float) -> None:
    """The usual step of 0.1 lies below 2 sigma / sqrt(largest eigenvalue of J^T J)."""
    noise = torch.Generator().manual_seed(0)
    model = generator_of(side, dim).double()
    z = torch.randn(1, dim, generator=noise, dtype=torch.float64)
    with torch.no_grad():
        jacobian = (model(z + 1e-6 * torch.eye(dim)) - model(z)).flatten(1) / 1e-6
    assert 2 * sigma / torch.linalg.matrix_norm(jacobian, ord=2) > 0.1


def test_the_first_updates_lower_the_error() -> None:
    model = generator_of(32, 8, 8)
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    x = 0.5 * z[:, :1, None, None].tanh().expand(16, 3, 32, 32)
    adam, errors = torch.optim.Adam(model.parameters(), 2e-3), []
    for _ in range(20):
        error = (model(z) - x).square().mean()
        adam.zero_grad()
        error.backward()
        adam.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]


def test_a_batch_does_not_change_an_image() -> None:
    model, z = generator_of(16).double(), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(model(z)[:1], model(z[:1]), rtol=1e-12, atol=1e-12)


def test_the_residual_form_is_the_default_where_there_is_no_other() -> None:
    with torch.device("meta"):
        assert isinstance(image_generator(5, (3, 48, 48), 4), ResidualGenerator)
        assert isinstance(image_encoder((3, 48, 48), 5, 4), ResidualEncoder)
        assert isinstance(image_generator(5, (3, 64, 64), 4), Generator)


@pytest.mark.parametrize("shape", [(3, 7, 7), (3, 257, 257), (3, 32, 28), (0, 32, 32)])
def test_other_sizes_are_refused(shape: tuple[int, int, int]) -> None:
    for make in (lambda: image_generator(5, shape, 4, "residual"), lambda: image_encoder(shape, 5, 4, "residual")):
        with pytest.raises(ConfigError, match="must be square, with sides from 8 to 256"):
            make()
