"""The fitted Gaussians against torch's own."""

import math

import pytest
import torch

from ebmscale.density.bases import Gaussian, MomentBase, SampledOnly
from ebmscale.density.mixture import Mixture
from ebmscale.density.mixture_fit import shares_of, statistics_of
from ebmscale.density.prior import Base


def draws(num: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mixing + 5


def test_a_gaussian_is_fitted_to_an_array_too() -> None:
    samples = draws(50, 3)
    assert torch.equal(Gaussian.fitted(samples.numpy()).mean, Gaussian.fitted(samples).mean)


def test_the_fitted_gaussian_is_torchs() -> None:
    samples = draws(500, 4)
    fitted = Gaussian.fitted(samples)
    expected = torch.distributions.MultivariateNormal(samples.mean(0), torch.cov(samples.T))
    torch.testing.assert_close(fitted.log_density(samples), expected.log_prob(samples))
    noise = torch.randn(50_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(torch.cov(fitted.from_noise(noise).T), torch.cov(samples.T), rtol=0.1, atol=0.1)
    torch.testing.assert_close(fitted.from_noise(noise).mean(0), samples.mean(0), rtol=0, atol=0.1)


@pytest.mark.parametrize("inside", [False, True])
def test_scores_in_closed_form_are_those_of_autograd(inside: bool) -> None:
    samples = draws(40, 3)
    found = Gaussian.fitted(samples)
    means, scales = torch.tensor([[1.0, 0, 0], [0, -1.0, 0]]).double(), torch.eye(3).double().expand(2, 3, 3)
    mixture = Mixture(torch.tensor([0.3, 0.7]).double(), means, scales)
    base = MomentBase(found.mean, found.cholesky, mixture) if inside else found
    log_density, score = base.evaluate(samples)
    torch.testing.assert_close(log_density, base.log_density(samples))
    expected, gradient = Base.evaluate(base, samples)
    torch.testing.assert_close(log_density, expected)
    torch.testing.assert_close(score, gradient)


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


def two_clusters(num: int) -> torch.Tensor:
    """0.7 N((2, 0), [[1, 0.8], [0.8, 1]]) + 0.3 N((-3, 1), 0.25 I)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num, 2, generator=generator)
    factor = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    first, second = torch.tensor([2.0, 0.0]) + noise @ factor.T, torch.tensor([-3.0, 1.0]) + 0.5 * noise
    return torch.where(torch.rand(num, 1, generator=generator) < 0.7, first, second)


def test_a_mixture_is_found_by_expectation_maximisation() -> None:
    mixture = Mixture.fitted(two_clusters(20_000), 2, torch.Generator().manual_seed(3))
    order = mixture.weights.argsort(descending=True)
    torch.testing.assert_close(mixture.weights[order], torch.tensor([0.7, 0.3]), rtol=0, atol=0.02)
    torch.testing.assert_close(mixture.means[order], torch.tensor([[2.0, 0.0], [-3.0, 1.0]]), rtol=0, atol=0.05)
    covariances = (mixture.choleskys @ mixture.choleskys.mT)[order]
    wanted = torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[0.25, 0.0], [0.0, 0.25]]])
    torch.testing.assert_close(covariances, wanted, rtol=0, atol=0.05)


def test_several_fits_are_the_mean_of_their_densities() -> None:
    samples, generator = draws(500, 3), torch.Generator().manual_seed(2)
    together = Mixture.fitted(samples, 4, torch.Generator().manual_seed(2), num_fits=2)
    each = torch.stack([Mixture.fitted(samples, 4, generator).log_density(samples) for _ in range(2)])
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(together.log_density(samples), each.logsumexp(0) - math.log(2))


def test_the_shares_of_expectation_maximisation_are_those_of_the_density() -> None:
    samples = draws(300, 3)
    mixture = Mixture.fitted(samples, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        shares_of(mixture.components)(statistics_of(samples.double())), mixture._terms(samples).softmax(0)
    )


def test_a_mixtures_density_and_score_are_torchs_and_autograds() -> None:
    samples = draws(300, 3)
    mixture = Mixture.fitted(samples, 4, torch.Generator().manual_seed(0))
    parts = torch.distributions.MultivariateNormal(mixture.means, scale_tril=mixture.choleskys)
    torchs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), parts)
    z = samples[:9].clone().requires_grad_(True)
    log_density, score = mixture.evaluate(z.detach())
    torch.testing.assert_close(log_density, torchs.log_prob(z.detach()))
    torch.testing.assert_close(mixture.log_density(z), log_density)
    torch.testing.assert_close(torch.autograd.grad(torchs.log_prob(z).sum(), z)[0], score)


def test_noise_becomes_exact_samples_of_a_mixture() -> None:
    mixture = Mixture.fitted(two_clusters(5_000), 2, torch.Generator().manual_seed(3))
    z = mixture.from_noise(torch.randn(40_000, 2, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(mixture.from_noise(torch.zeros(3, 2, 2)), mixture.from_noise(torch.zeros(6, 2)).view(3, 2, 2))
    own = mixture._terms(z).argmax(0)
    torch.testing.assert_close(own.bincount() / len(z), mixture.weights, rtol=0, atol=0.01)
    for component in range(2):
        part = z[own == component]
        torch.testing.assert_close(part.mean(0), mixture.means[component], rtol=0, atol=0.05)
        covariance = mixture.choleskys[component] @ mixture.choleskys[component].T
        torch.testing.assert_close(torch.cov(part.T), covariance, rtol=0, atol=0.05)


def test_a_base_may_be_a_mixture_in_its_coordinates() -> None:
    samples = two_clusters(4_000)
    base = MomentBase.of_posteriors(samples, torch.zeros_like(samples), 2, torch.Generator().manual_seed(3))
    single = MomentBase.of_posteriors(samples, torch.zeros_like(samples))
    assert float((base.log_density(samples) - single.log_density(samples)).mean()) > 0.5
    side = torch.linspace(-8, 8, 400)
    grid = torch.cartesian_prod(side, side)
    assert float(base.log_density(grid).exp().sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=1e-3)
    z = base.from_noise(torch.randn(40_000, 2, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(torch.cov(z.T), torch.cov(samples.T), rtol=0.05, atol=0.05)


def test_clusters_along_one_axis_of_many_are_found_in_the_coordinates_before_whitening() -> None:
    generator = torch.Generator().manual_seed(0)
    side = torch.randint(2, (4000, 1), generator=generator) * 2.0 - 1
    means, one = torch.stack([torch.ones(40), -torch.ones(40)]), torch.eye(40)
    truth = Mixture(torch.full((2,), 0.5), means, one.repeat(2, 1, 1))
    samples = side + torch.randn(4000, 40, generator=generator)
    base = MomentBase.of_posteriors(samples, torch.zeros_like(samples), 2, generator)
    overfit = (2 * 40 * 43 / 2) / 4000  # parameters over 2 N, once for the samples and once for the truth
    assert float((truth.log_density(samples) - base.log_density(samples)).mean().abs()) < overfit


def test_axes_lead_back_to_the_points_in_units_of_their_deviations() -> None:
    samples = draws(500, 4)
    base = MomentBase.of_posteriors(samples, torch.zeros_like(samples))
    expected = (samples - samples.mean(0)) / samples.std(0, correction=0)
    torch.testing.assert_close(base.coordinates(samples) @ base.axes().double(), expected, atol=1e-4, rtol=1e-4)
