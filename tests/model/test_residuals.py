"""Residuals of normal images, in closed form, and the score that uses them."""

import math

import pytest
import torch
from torch import Tensor

from ebmscale.model.residuals import NUM_LEVELS, Residuals, measure_residuals
from ebmscale.stored import as_form
from ebmscale.world import World

SHAPE = (1, 8, 8)
NUM_PIXELS = math.prod(SHAPE)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_independent_noise_has_as_many_dimensions_as_pixels() -> None:
    flat = torch.zeros(20_000, *SHAPE)
    found = measure_residuals(flat + 0.3 * draw(*flat.shape), flat, World.alone())
    assert found.num_dims == pytest.approx(NUM_PIXELS, rel=0.05)
    assert found.mean == pytest.approx(1.0, rel=1e-2)
    assert found.levels[NUM_LEVELS // 2] == pytest.approx(0.3**2, rel=1e-2)


def test_noise_that_all_pixels_share_has_one_dimension() -> None:
    flat = torch.zeros(20_000, *SHAPE)
    found = measure_residuals(flat + 0.3 * draw(len(flat), 1, 1, 1), flat, World.alone())
    assert found.num_dims == pytest.approx(1.0, rel=0.05)


def test_the_energy_of_the_usual_error_is_half_the_dimensions_and_grows_with_the_square() -> None:
    residuals = Residuals((0.25,) * NUM_LEVELS, mean=2.0, variance=1.0)
    assert residuals.num_dims == 8.0
    reconstruction = torch.zeros(1, *SHAPE)
    usual = torch.full_like(reconstruction, math.sqrt(2.0 * 0.25))
    assert float(residuals.energy(usual, reconstruction)) == pytest.approx(4.0)
    assert float(residuals.energy(3 * usual, reconstruction)) == pytest.approx(36.0)


def test_the_same_error_is_less_unusual_where_errors_are_usual() -> None:
    """Edges are noisy and the background is not: the score counts the error relative to its expected value."""
    reconstruction = torch.cat([torch.full((5_000, *SHAPE), -1.0), torch.zeros(5_000, *SHAPE)])
    scale = torch.where(reconstruction < -0.5, 0.05, 0.5)
    found = measure_residuals(reconstruction + scale * draw(*reconstruction.shape), reconstruction, World.alone())
    error = 0.2 * torch.ones(2, *SHAPE)
    ground, edge = found.energy(reconstruction[[0, -1]] + error, reconstruction[[0, -1]]).tolist()
    assert ground > 50 * edge


def test_levels_beyond_the_range_and_values_of_a_checkpoint() -> None:
    flat = torch.linspace(-2, 2, 64).expand(100, -1).reshape(100, *SHAPE)
    found = measure_residuals(flat + 0.1 * draw(*flat.shape), flat, World.alone())
    assert found.energy(flat + 0.1, flat).isfinite().all()
    assert (
        as_form({"levels": list(found.levels), "mean": found.mean, "variance": found.variance}, Residuals, "x") == found
    )
