"""The Gaussian log ratio that a quadratic head starts at, against its closed form."""

import pytest
import torch

from ebmscale.networks import QuadraticHead, quadratic_part, vector_ratio
from ebmscale.stages.moments import Quadratic, gaussian_ratio


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluated(ratio: Quadratic, z: torch.Tensor) -> torch.Tensor:
    return ((z @ ratio.quadratic) * z).sum(1) + z @ ratio.linear + ratio.constant


def with_moments(num: int, mean: torch.Tensor, cholesky: torch.Tensor, seed: int) -> torch.Tensor:
    """Samples whose mean and covariance are exact."""
    raw = normal(num, len(mean), seed=seed)
    raw = raw - raw.mean(0)
    covariance = torch.cov(raw.T).view(len(mean), len(mean))
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), raw.T, upper=False).T
    return mean + white @ cholesky.T


def test_it_is_the_log_ratio_of_two_gaussians_as_the_samples_become_many() -> None:
    mean_q, mean_p = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.0, 0.5]).double()
    root_q, root_p = torch.tensor([[0.5, 0.0], [0.3, 0.7]]).double(), torch.tensor([[2.0, 0.0], [-1.0, 1.0]]).double()
    q, p = with_moments(200_000, mean_q, root_q, 1), with_moments(200_000, mean_p, root_p, 2)
    z = normal(50, 2, seed=3)
    sides = ((mean_q, root_q), (mean_p, root_p))
    exact = [torch.distributions.MultivariateNormal(mean, scale_tril=root).log_prob(z) for mean, root in sides]
    torch.testing.assert_close(evaluated(gaussian_ratio(q, p), z), exact[0] - exact[1], rtol=2e-3, atol=2e-3)


def test_either_covariance_is_drawn_towards_the_other() -> None:
    """One coordinate, 9 samples a side: the variances 4 and 1 become (9 * 4 + 1) / 10 and (9 + 4) / 10."""
    one, zero = torch.ones(1, 1).double(), torch.zeros(1).double()
    q, p = with_moments(9, zero, 2 * one, 1), with_moments(9, zero, one, 2)
    found = gaussian_ratio(q, p)
    assert float(found.quadratic) == pytest.approx(-0.5 / 3.7 + 0.5 / 1.3)
    assert float(found.linear) == pytest.approx(0, abs=1e-9)


def test_equal_moments_say_nothing_and_the_sides_may_be_exchanged() -> None:
    q, p = normal(40, 3, seed=1), 2 + normal(50, 3, seed=2)
    assert all(float(part.abs().max()) == 0 for part in gaussian_ratio(q, q))
    z = normal(20, 3, seed=4)
    torch.testing.assert_close(evaluated(gaussian_ratio(q, p), z), -evaluated(gaussian_ratio(p, q), z))


def test_samples_on_a_line_have_no_such_ratio() -> None:
    line = torch.cat([normal(50, 1), torch.zeros(50, 1).double()], 1)
    with pytest.raises(ValueError, match="positive definite"):
        gaussian_ratio(line, line)


def test_a_head_takes_it_over() -> None:
    found = gaussian_ratio(1 + normal(100, 3, seed=1), 2 * normal(100, 3, seed=2))
    head = QuadraticHead(3)
    head.assign(*found.times(0.5))
    z = normal(20, 3, seed=3)
    torch.testing.assert_close(head(z.float()).double(), 0.5 * evaluated(found, z), rtol=1e-4, atol=1e-4)


def test_where_a_network_has_its_head() -> None:
    assert isinstance(quadratic_part(vector_ratio(2, (), "silu", True)), QuadraticHead)
    assert isinstance(quadratic_part(vector_ratio(2, (8,), "silu", True)), QuadraticHead)
    assert quadratic_part(vector_ratio(2, (8,), "silu", False)) is None
