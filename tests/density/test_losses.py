"""The losses between two normal densities, whose log ratio is known, in float64.

Both densities are represented by their quantiles, so that a mean over points is a quadrature and not a lottery.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from ebmscale.density.losses import chance_loss, maximum_likelihood, n2ce, nce

Loss = Callable[[Tensor, Tensor], Tensor]

QUANTILES = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
MEAN, SD = 0.7, 0.6  # q = N(0.7, 0.6^2) against p = N(0, 1)
Z_P, Z_Q = QUANTILES, MEAN + SD * QUANTILES
LOG_RATIO = torch.tensor(
    [-math.log(SD) - 0.5 * (MEAN / SD) ** 2, MEAN / SD**2, 0.5 - 0.5 / SD**2], dtype=torch.float64
)  # log q - log p = c . (1, z, z^2)


def quadratic(c: Tensor, z: Tensor) -> Tensor:
    return c[0] + c[1] * z + c[2] * z.square()


def fit(loss: Loss) -> Tensor:
    """The coefficients of the quadratic log ratio that minimises a loss."""
    c = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([c], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(quadratic(c, Z_Q), quadratic(c, Z_P))
        value.backward()
        return value

    optimizer.step(closure)
    return c.detach()


def gradient(loss: Loss, c: Tensor) -> Tensor:
    c = c.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(quadratic(c, Z_Q), quadratic(c, Z_P)), c)
    return grad


@pytest.mark.parametrize("loss", [nce, partial(n2ce, magnification=0.5), partial(n2ce, magnification=10.0)])
def test_the_optimum_is_the_log_ratio(loss: Loss) -> None:
    torch.testing.assert_close(fit(loss), LOG_RATIO, rtol=0, atol=1e-3)


@pytest.mark.parametrize("loss", [nce, partial(n2ce, magnification=0.5), partial(n2ce, magnification=1e4)])
def test_the_gradient_vanishes_at_the_log_ratio_and_not_beside_it(loss: Loss) -> None:
    assert gradient(loss, LOG_RATIO).norm() < 1e-4
    assert gradient(loss, LOG_RATIO + 0.01).norm() > 1e-3


def test_the_loss_of_a_ratio_that_says_nothing() -> None:
    zero = torch.zeros(5, dtype=torch.float64)
    assert float(nce(zero, zero)) == pytest.approx(chance_loss(1)) == pytest.approx(1.386294361)


def test_between_equal_densities_nothing_beats_the_zero_function() -> None:
    for c in torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1:
        f = quadratic(c, Z_P)
        assert nce(f, f) > chance_loss(1)


def test_nce_is_twice_the_binary_cross_entropy() -> None:
    f_q, f_p = quadratic(LOG_RATIO, Z_Q), quadratic(LOG_RATIO, Z_P)
    labels = torch.cat([torch.ones_like(f_q), torch.zeros_like(f_p)])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(torch.cat([f_q, f_p]), labels)
    torch.testing.assert_close(nce(f_q, f_p), 2 * entropy)


def test_n2ce_is_its_definition() -> None:
    f_q, f_p = quadratic(LOG_RATIO, Z_Q), quadratic(LOG_RATIO, Z_P)
    r_q, r_p, m = f_q.exp(), f_p.exp(), 7.0
    direct = -(r_q / (m + r_q)).log().mean() - m * (m / (m + r_p)).log().mean()
    torch.testing.assert_close(n2ce(f_q, f_p, m), direct)


def test_n2ce_with_one_is_nce() -> None:
    f_q, f_p = quadratic(LOG_RATIO, Z_Q), quadratic(LOG_RATIO, Z_P)
    assert torch.equal(n2ce(f_q, f_p, 1.0), nce(f_q, f_p))


@pytest.mark.parametrize("m", [1.0, 0.3, 10.0])
def test_chance_is_the_loss_of_a_ratio_that_says_nothing(m: float) -> None:
    nothing = torch.zeros(3, dtype=torch.float64)
    assert chance_loss(m) == pytest.approx(float(n2ce(nothing, nothing, m)), abs=1e-12)


def test_n2ce_with_much_noise_has_the_gradient_of_maximum_likelihood() -> None:
    """The gradient tends to -E_q[grad f] + E_p[r grad f], with an error that falls as 1 / M."""
    c = torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64)
    features_q, features_p = (torch.stack([torch.ones_like(z), z, z.square()]) for z in (Z_Q, Z_P))
    wanted = -features_q.mean(1) + (quadratic(c, Z_P).exp() * features_p).mean(1)
    errors = [float((gradient(partial(n2ce, magnification=m), c) - wanted).norm()) for m in (1e2, 1e4, 1e6)]
    assert errors[2] < 1e-5
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("magnification", [0.0, -1.0])
def test_n2ce_refuses_a_magnification_that_is_not_positive(magnification: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        n2ce(torch.zeros(1), torch.zeros(1), magnification)


def test_maximum_likelihood_is_the_gradient_of_the_negative_log_likelihood_when_p_is_the_model() -> None:
    """For the model N(mu, 1): f = mu z up to a constant and -log likelihood has the gradient mu - E_q[z]."""
    mu = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    z_model = QUANTILES + 0.3
    (grad,) = torch.autograd.grad(maximum_likelihood(mu * Z_Q, mu * z_model), mu)
    assert float(grad) == pytest.approx(0.3 - MEAN, abs=1e-9)
