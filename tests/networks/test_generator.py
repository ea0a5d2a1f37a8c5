"""The generator: published sizes, shapes, its first layer, a stable start."""

import pytest
import torch
from torch import nn

from ebmscale.errors import ConfigError
from ebmscale.networks import ARCHITECTURES, Generator, build_generator, count_parameters
from ebmscale.networks.blocks import LatentToGrid


@pytest.mark.parametrize(
    ("latent_dim", "width", "architecture", "expected"),
    [(100, 64, "svhn", 3_447_683), (128, 128, "cifar10", 18_883_075)],
)
def test_parameter_counts_are_lebms(latent_dim: int, width: int, architecture: str, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(Generator(latent_dim, (3, 32, 32), width, architecture)) == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_have_the_shape_and_range_asked_for(architecture: str, channels: int) -> None:
    size = ARCHITECTURES[architecture].size
    model = build_generator(5, (channels, size, size), 4, architecture, generator=torch.Generator().manual_seed(0))
    x = model(torch.randn(2, 5) * 100)
    assert x.shape == (2, channels, size, size)
    assert x.abs().max() <= 1


def test_the_first_architecture_of_a_size_is_the_default() -> None:
    with torch.device("meta"):
        assert count_parameters(Generator(100, (3, 32, 32), 64)) == 3_447_683


@pytest.mark.parametrize(("channels", "size"), [(6, 4), (3, 8)])
def test_first_layer_is_a_transposed_convolution(channels: int, size: int) -> None:
    reference = nn.ConvTranspose2d(5, channels, size).double()
    layer = LatentToGrid(5, channels, size).double()
    with torch.no_grad():
        layer.weight.copy_(reference.weight.flatten(1))
        assert reference.bias is not None
        layer.bias.copy_(reference.bias)
    z = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(z), reference(z[:, :, None, None]))
    assert count_parameters(layer) == count_parameters(reference)


def test_gradient_reaches_z_and_every_parameter() -> None:
    model = build_generator(5, (1, 28, 28), 4, generator=torch.Generator().manual_seed(0))
    z = torch.randn(3, 5, requires_grad=True)
    model(z).square().sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).all()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_posterior_chain_starts_stable(architecture: str) -> None:
    """The usual step of 0.1 at sigma 0.3 lies below 2 sigma / sqrt(largest eigenvalue of J^T J)."""
    size = ARCHITECTURES[architecture].size
    generator = torch.Generator().manual_seed(0)
    model = build_generator(16, (3, size, size), 16, architecture, generator=generator).double()
    z = torch.randn(1, 16, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        jacobian = (model(z + 1e-6 * torch.eye(16)) - model(z)).flatten(1) / 1e-6
    assert 2 * 0.3 / torch.linalg.matrix_norm(jacobian, ord=2) > 0.1


def test_a_size_without_an_architecture_is_refused_with_the_sizes_that_have_one() -> None:
    with pytest.raises(ConfigError, match=r"3 channels and 48x48.*8x8, 28x28, 32x32, 64x64, 128x128"):
        Generator(8, (3, 48, 48), 16)
    with pytest.raises(ConfigError, match="28x32"):
        Generator(8, (1, 28, 32), 16)


def test_an_architecture_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="svhn or cifar10"):
        Generator(8, (3, 32, 32), 16, architecture="mnist")
    with pytest.raises(ConfigError, match="no network architecture 'svnh'"):
        Generator(8, (3, 32, 32), 16, architecture="svnh")
