"""A mixture of two Gaussians in the plane, tilted by linear ratios: every p_k is such a mixture, in closed form."""

import torch
from torch import Tensor

from ebmscale.density.mixture import Mixture
from ebmscale.density.prior import RatioSequence
from ebmscale.networks import QuadraticHead, Standardised

SHARES = torch.tensor([0.3, 0.7])
MEANS = torch.tensor([[-1.0, 0.5], [0.8, -0.4]])
ROOTS = torch.tensor([[[0.9, 0.0], [0.2, 0.7]], [[0.6, 0.0], [-0.1, 0.8]]])
SLOPES = torch.tensor([[0.7, -0.3], [-0.2, 0.5]])
"""Of the ratios f_k(z) = b_k z."""


def linear(slope: Tensor) -> Standardised:
    """The ratio b z."""
    network = Standardised(QuadraticHead(len(slope)), len(slope))
    inner = network.inner
    assert isinstance(inner, QuadraticHead)
    inner.assign(torch.zeros(len(slope), len(slope)), slope, torch.zeros(()))
    return network.requires_grad_(False)


def tilted(num_stages: int) -> RatioSequence:
    """p_k."""
    sequence = RatioSequence(Mixture(SHARES, MEANS, ROOTS), linear(SLOPES[0]))
    for slope in SLOPES[:num_stages]:
        sequence = sequence.append(linear(slope).state_dict())
    return sequence


def exact(slope: Tensor) -> tuple[float, Tensor, Tensor]:
    """log Z, mean (2,) and second moments (2, 2) of the mixture times e^(b z), in float64."""
    b, means, roots = slope.double(), MEANS.double(), ROOTS.double()
    covariances = roots @ roots.mT
    moved = means + covariances @ b
    logs = SHARES.double().log() + means @ b + 0.5 * torch.einsum("i,cij,j->c", b, covariances, b)
    shares = logs.softmax(0)
    second = torch.einsum("c,cij->ij", shares, covariances + moved[:, :, None] * moved[:, None])
    return float(logs.logsumexp(0)), shares @ moved, second


def prior_of(num_stages: int) -> tuple[float, Tensor, Tensor]:
    """`exact` for p_k."""
    return exact(SLOPES[:num_stages].sum(0))


def draws_of(num_stages: int, num: int, seed: int = 0) -> Tensor:
    """Exact samples (N, 2) of p_k."""
    b, generator = SLOPES[:num_stages].sum(0), torch.Generator().manual_seed(seed)
    covariances = ROOTS @ ROOTS.mT
    logs = SHARES.log() + MEANS @ b + 0.5 * torch.einsum("i,cij,j->c", b, covariances, b)
    part = torch.multinomial(logs.softmax(0), num, replacement=True, generator=generator)
    noise = torch.randn(num, 2, generator=generator)
    return (MEANS + covariances @ b)[part] + (ROOTS[part] @ noise[:, :, None])[:, :, 0]


def check_moments(z: Tensor, weights: Tensor, num_stages: int, inflated: float = 1.0) -> None:
    """Weighted means of z and of its products lie within 4.5 standard errors of those of p_k."""
    _, mean, second = prior_of(num_stages)
    z, weights = z.double(), weights.double()
    values = torch.cat([z, z.square(), (z[:, 0] * z[:, 1])[:, None]], 1)
    true = torch.cat([mean, second.diagonal(), second[0, 1:]])
    weighted = weights[:, None] * values
    error = inflated * weighted.std(0) / len(z) ** 0.5
    assert bool(((weighted.mean(0) - true).abs() < 4.5 * error).all()), (weighted.mean(0), true, error)
