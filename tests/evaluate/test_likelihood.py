"""Likelihood estimates against a linear Gaussian model, where p(x) is known; in float64."""

import math

import pytest
import torch
from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.density.path import Annealing
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.errors import DataError
from ebmscale.evaluate.likelihood import Proposals, bits_per_dim, dequantised, fit_proposals, likelihood, marginal
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.model.latent_model import LatentModel

NUM_IMAGES, NUM, DIM, PIXELS, SIGMA = 6, 200, 3, 10, 0.4


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_bounds_close_on_the_likelihood_of_a_linear_model() -> None:
    """x = W z + sigma e, so p(x) = N(0, W W^T + sigma^2 I)."""
    weights, z = draws(PIXELS, DIM, seed=1), draws(NUM_IMAGES, DIM, seed=2)
    x = z @ weights.T + SIGMA * draws(NUM_IMAGES, PIXELS, seed=3)
    covariance = weights @ weights.T + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(PIXELS, dtype=torch.float64), covariance).log_prob(x)
    copies = x.repeat_interleave(NUM, 0)

    def log_joint(rows: Tensor) -> Tensor:
        noise = torch.distributions.Normal(rows @ weights.T, SIGMA).log_prob(copies).sum(1)
        return StandardNormal(DIM).log_density(rows) + noise

    spread = torch.linalg.inv(torch.eye(DIM).double() + weights.T @ weights / SIGMA**2)
    centre, cholesky = x @ weights @ spread / SIGMA**2, torch.linalg.cholesky(spread)
    off = Proposals(centre + 0.4 * cholesky.diagonal(), 1.5 * cholesky.expand(NUM_IMAGES, -1, -1))
    streams = torch.arange(NUM_IMAGES).repeat_interleave(NUM)
    found = marginal(log_joint, off, NUM, 0, streams, Annealing(ess=0.9))
    for name in ("annealed", "upper"):
        value, error = getattr(found, name), getattr(found, f"{name}_error")
        assert float(error.max()) < 0.3
        assert bool(((value - exact).abs() < 5 * error).all())
    assert float(found.annealed_error.mean()) < 0.7 * float(found.importance_error.mean())
    assert float((found.importance - exact).mean()) == pytest.approx(0, abs=0.4)
    known = marginal(log_joint, off, NUM, 0, streams, Annealing(ess=0.9), z)
    assert torch.equal(known.annealed, found.annealed)
    assert float((known.upper - exact).mean()) == pytest.approx(0, abs=0.3)


def test_proposals_have_the_moments_of_their_draws() -> None:
    mixing = draws(2, DIM, DIM, seed=1)
    z = draws(2, 20_000, DIM) @ mixing + 3
    proposals = fit_proposals(z)
    torch.testing.assert_close(proposals.mean, z.mean(1))
    covariance = proposals.cholesky @ proposals.cholesky.mT
    for own, expected in zip(covariance, z, strict=True):
        torch.testing.assert_close(own, torch.cov(expected.T), rtol=1e-3, atol=5e-3)
    exact = torch.distributions.MultivariateNormal(proposals.mean, scale_tril=proposals.cholesky)
    rows = z[:, :7]
    expected = exact.log_prob(rows.transpose(0, 1)).T.flatten()
    torch.testing.assert_close(proposals.log_density(rows.flatten(0, 1)), expected)


def test_few_draws_give_a_proposal_too() -> None:
    assert bool(fit_proposals(draws(2, 4, 10)).cholesky.isfinite().all())


def test_bytes_that_are_all_alike_cost_eight_bits() -> None:
    """256 levels of 1 / 127.5: the uniform density on them is 127.5 / 256."""
    log_p = torch.tensor([50 * math.log(127.5 / 256)], dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(log_p, 50), torch.tensor([8.0], dtype=torch.float64))


def test_bytes_are_dequantised_over_their_own_level() -> None:
    x = torch.tensor([0, 1, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 1, 50, 50)
    pixels = dequantised(x, seed=0)
    levels = (pixels + 1) * 127.5
    assert bool(((levels - x.float()).abs() <= 0.5 + 1e-4).all())
    torch.testing.assert_close(levels.mean((1, 2, 3)), x[:, 0, 0, 0].float(), rtol=0, atol=0.05)
    assert torch.equal(dequantised(pixels, seed=0), pixels)


@pytest.fixture
def model(tiny: RunConfig) -> LatentModel:
    block = tiny.posterior.model_copy(update={"num_steps": 30})
    tiny = tiny.model_copy(update={"posterior": block})
    prior = RatioSequence(StandardNormal(tiny.model.latent_dim), build_ratio_network(tiny))
    return LatentModel(tiny, build_model(tiny, (1, 8, 8)).requires_grad_(False), prior, (1, 8, 8), 0)


def test_images_of_the_model_lie_between_their_bounds(model: LatentModel) -> None:
    z = draws(5, 4, seed=7).float()
    x = model.decode(z) + model.config.model.sigma * draws(5, 1, 8, 8, seed=8).float()
    found = likelihood(model, x, num_particles=64, latents=z)
    slack = 5 * (found.bounds.annealed_error + found.bounds.upper_error) + 0.05
    assert bool((found.bounds.annealed <= found.bounds.upper + slack).all())
    assert float((found.bounds.upper - found.bounds.annealed).abs().max()) < 1
    figures = found.figures
    assert figures["log_z"] == 0
    assert figures["bits_per_dim_upper"] <= figures["bits_per_dim_annealed"] + 0.01
    again = likelihood(model, x, num_particles=64, latents=z, images_at_once=5)
    torch.testing.assert_close(again.bounds.annealed, found.bounds.annealed)


def test_images_of_another_shape_are_refused(model: LatentModel) -> None:
    for x in (torch.zeros(3, 1, 9, 9), torch.zeros(0, 1, 8, 8)):
        with pytest.raises(DataError, match="are needed"):
            likelihood(model, x)
