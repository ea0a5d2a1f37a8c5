"""The evidence on which the stage scheduler decides: how well a ratio separates held-out samples of q and p.

All functions take the log ratio's values f(z+) at held-out samples of q (N,) and f(z-) at samples of p (M,).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmscale.density.losses import nce


@dataclass(frozen=True)
class Evidence:
    """Held-out evidence of one ratio.

    Attributes:
        loss: NCE loss in nats; 2 log 2 = 1.3863 for the zero ratio f = 0.
        loss_error: its standard error.
        auc: probability that f is higher at a sample of q than at one of p; 0.5 at chance.
        calibration_error: expected calibration error of the classifier sigmoid(f), in [0, 1].
        kl_bound: lower bound on KL(q || p) in nats, `kl_lower_bound`.
        kl_bound_error: its standard error in nats.
        ess: effective sample size of the weights e^f at the samples of p, as a fraction in (0, 1].
        grad_norm: norm of the last gradient with respect to the ratio's parameters.
    """

    loss: float
    loss_error: float
    auc: float
    calibration_error: float
    kl_bound: float
    kl_bound_error: float
    ess: float
    grad_norm: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether every number here is finite."""
        return all(map(math.isfinite, vars(self).values()))


def measure(log_ratio_q: Tensor, log_ratio_p: Tensor, grad_norm: float = 0.0, judges_gain: bool = False) -> Evidence:
    """The evidence of f(z+) (N,) and f(z-) (M,), computed in float64.

    Args:
        log_ratio_q: at samples of q.
        log_ratio_p: at samples of p.
        grad_norm: see `Evidence`.
        judges_gain: whether the KL bound is that of the best gain * f with a gain of at most 1, which every second
            sample chooses and the others judge. Without a gain, the bound of a ratio that is too strong can be below 0.
    """
    q, p = log_ratio_q.detach().double(), log_ratio_p.detach().double()
    if judges_gain:
        gain = best_gain(q[0::2], p[0::2])
        bound, error = kl_lower_bound(gain * q[1::2], gain * p[1::2])
    else:
        bound, error = kl_lower_bound(q, p)
    return Evidence(
        loss=float(nce(q, p)),
        loss_error=nce_error(q, p),
        auc=auc(q, p),
        calibration_error=calibration_error(q, p),
        kl_bound=bound,
        kl_bound_error=error,
        ess=effective_sample_size(p) / len(p),
        grad_norm=grad_norm,
    )


def nce_error(log_ratio_q: Tensor, log_ratio_p: Tensor) -> float:
    """Standard error of the NCE loss.

    It stays small where few samples of p carry the weights e^f. The KL bound does not.
    """
    parts = F.softplus(-log_ratio_q), F.softplus(log_ratio_p)
    return float(sum(part.var() / len(part) for part in parts)) ** 0.5


def auc(log_ratio_q: Tensor, log_ratio_p: Tensor) -> float:
    """Area under the ROC curve (Mann-Whitney), ties counted half; NaN if any value is NaN."""
    if bool(log_ratio_q.isnan().any()) or bool(log_ratio_p.isnan().any()):
        return math.nan
    ordered = log_ratio_p.sort().values
    below = torch.searchsorted(ordered, log_ratio_q, side="left")
    not_above = torch.searchsorted(ordered, log_ratio_q, side="right")
    return float((below + not_above).double().mean() / (2 * len(log_ratio_p)))


def calibration_error(log_ratio_q: Tensor, log_ratio_p: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error of sigmoid(f) as the probability of q, in [0, 1] (Guo et al. 2017).

    It is the mean of |fraction of q - mean probability| over bins of equal width, weighted by the mass of a bin. Both
    sides have the same total weight. It is NaN if any value is NaN.
    """
    probability = torch.sigmoid(torch.cat([log_ratio_q, log_ratio_p])).double()
    label = torch.cat([torch.ones_like(log_ratio_q), torch.zeros_like(log_ratio_p)]).double()
    weight = torch.cat([
        torch.full_like(log_ratio_q, 0.5 / len(log_ratio_q)), torch.full_like(log_ratio_p, 0.5 / len(log_ratio_p))
    ]).double()  # fmt: skip
    if bool(probability.isnan().any()):
        return math.nan
    index = (probability * num_bins).long().clamp(max=num_bins - 1)
    gap = torch.zeros(num_bins, dtype=torch.float64, device=index.device)
    return float(gap.index_add(0, index, weight * (label - probability)).abs().sum())


def kl_lower_bound(log_ratio_q: Tensor, log_ratio_p: Tensor) -> tuple[float, float]:
    """J = E_q[f] - log E_p[e^f] <= KL(q || p) (Donsker & Varadhan 1983) and its standard error (delta method), nats."""
    n, m = len(log_ratio_q), len(log_ratio_p)
    log_mean = torch.logsumexp(log_ratio_p, 0) - math.log(m)
    weights = torch.exp(log_ratio_p - log_mean)
    variance = log_ratio_q.var() / n + weights.var() / m
    return float(log_ratio_q.mean() - log_mean), float(variance.sqrt())


def best_gain(log_ratio_q: Tensor, log_ratio_p: Tensor) -> float:
    """The gain g in [0, 1] for which the bound g E_q[f] - log E_p[e^(g f)] is greatest; it is concave in g."""
    mean, low, high = log_ratio_q.mean(), 0.0, 1.0
    for _ in range(30):
        gain = 0.5 * (low + high)
        weights = torch.softmax(gain * log_ratio_p, 0)
        low, high = (gain, high) if bool(weights @ log_ratio_p <= mean) else (low, gain)
    return low if low > 1e-6 else 0.0


def effective_sample_size(log_weights: Tensor) -> float:
    """(sum w)^2 / sum w^2 of the weights w = e^log_weights (M,): between 1 and M (Kish)."""
    return float(torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)))
