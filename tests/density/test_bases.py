"""The fitted Gaussians against torch's own."""

import pytest
import torch

from ebmscale.density.bases import Gaussian, MomentBase, SampledOnly


def draws(num: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mixing + 5


def test_the_fitted_gaussian_is_torchs() -> None:
    samples = draws(500, 4)
    fitted = Gaussian.fitted(samples)
    expected = torch.distributions.MultivariateNormal(samples.mean(0), torch.cov(samples.T))
    torch.testing.assert_close(fitted.log_density(samples), expected.log_prob(samples))
    noise = torch.randn(50_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(torch.cov(fitted.from_noise(noise).T), torch.cov(samples.T), rtol=0.1, atol=0.1)
    torch.testing.assert_close(fitted.from_noise(noise).mean(0), samples.mean(0), rtol=0, atol=0.1)


def test_blocks_are_fitted_by_themselves() -> None:
    samples = draws(500, 5)
    fitted = Gaussian.fitted(samples, (2, 3))
    parts = [Gaussian.fitted(part) for part in samples.split([2, 3], dim=1)]
    expected = sum(part.log_density(own) for part, own in zip(parts, samples.split([2, 3], dim=1), strict=True))
    torch.testing.assert_close(fitted.log_density(samples), expected)


def test_one_coordinate_works_too() -> None:
    samples = draws(100, 1)
    fitted = Gaussian.fitted(samples)
    expected = torch.distributions.Normal(samples.mean(), samples.std()).log_prob(samples).squeeze(1)
    torch.testing.assert_close(fitted.log_density(samples), expected)


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        Gaussian.fitted(torch.ones(10, 2))
    with pytest.raises(ValueError, match="cannot be drawn"):
        SampledOnly(2).from_noise(torch.zeros(3, 2))
    assert torch.equal(SampledOnly(2).log_density(torch.ones(3, 2)), torch.zeros(3))


def test_the_moments_of_gaussian_posteriors_are_those_of_their_mixture() -> None:
    means, stds = draws(400, 3), 0.1 + draws(400, 3).abs()
    base = MomentBase.of_posteriors(means, stds.square())
    covariance = torch.cov(means.T, correction=0) + stds.square().mean(0).diag()
    torch.testing.assert_close(base.mean.double(), means.mean(0))
    torch.testing.assert_close((base.cholesky @ base.cholesky.T).double(), covariance, rtol=1e-5, atol=1e-4)
    expected = torch.distributions.MultivariateNormal(means.mean(0), covariance).log_prob(means)
    torch.testing.assert_close(base.log_density(means), expected, rtol=1e-4, atol=1e-4)


def test_coordinates_are_white_and_scores_follow_the_chain_rule() -> None:
    samples = draws(2_000, 4)
    base = MomentBase.of_posteriors(samples, torch.zeros_like(samples))
    white = base.coordinates(samples)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(4).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(base.from_noise(white), samples, rtol=1e-4, atol=1e-4)
    z = samples[:7].clone().requires_grad_(True)
    inside = base.coordinates(z)
    (of_white,) = torch.autograd.grad(inside.pow(3).sum(), inside, retain_graph=True)
    (of_z,) = torch.autograd.grad(inside.pow(3).sum(), z)
    torch.testing.assert_close(base.score_from(of_white), of_z)


def test_before_there_are_moments_the_base_is_the_standard_normal() -> None:
    z = draws(9, 4)
    base = MomentBase.standard(4)
    assert torch.equal(base.coordinates(z), z)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(base.log_density(z), expected)


def test_posteriors_that_do_not_fill_the_space_are_refused() -> None:
    with pytest.raises(ValueError, match="positive definite"):
        MomentBase.of_posteriors(torch.ones(50, 3), torch.zeros(50, 3))
