"""The fitted Gaussian against torch's own, in float64."""

import pytest
import torch

from ebmscale.density.bases import Gaussian, SampledOnly


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
