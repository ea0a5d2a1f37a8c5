"""Losses that train a log ratio f = log q - log p from samples of both sides.

Every loss takes `log_ratio_q` (N,), the values f(z+) at samples of q (posterior latents), and `log_ratio_p` (M,),
the values f(z-) at samples of p (prior latents), and returns a scalar to be minimised.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def nce(log_ratio_q: Tensor, log_ratio_p: Tensor) -> Tensor:
    """Noise contrastive estimation: E_q[softplus(-f)] + E_p[softplus(f)] (Gutmann & Hyvarinen 2010).

    It is twice the binary cross-entropy of a classifier of q (label 1) against p (label 0), in nats. Its minimum is at
    f = log q - log p.
    """
    return F.softplus(-log_ratio_q).mean() + F.softplus(log_ratio_p).mean()


def n2ce(log_ratio_q: Tensor, log_ratio_p: Tensor, magnification: float, weights_p: Tensor | float = 1.0) -> Tensor:
    """Noise contrastive estimation with the noise magnified M times (N2CE, Yu et al. 2024).

    -E_q[log(r / (M + r))] - M E_p[log(M / (M + r))] with r = e^f. M = 1 gives `nce`. As M grows, the gradient tends to
    the gradient of maximum likelihood, -E_q[grad f] + E_p[r grad f].

    Args:
        log_ratio_q: (N,) f at samples of q.
        log_ratio_p: (M,) f at samples of p.
        magnification: M.
        weights_p: (M,) of the samples of p, where they are weighted; their mean over many is 1.

    Raises:
        ValueError: `magnification` is not positive.
    """
    if magnification <= 0:
        raise ValueError(f"the magnification of N2CE must be positive, not {magnification}")
    log_m = math.log(magnification)
    return F.softplus(log_m - log_ratio_q).mean() + magnification * (weights_p * F.softplus(log_ratio_p - log_m)).mean()


def chance_loss(magnification: float) -> float:
    """`n2ce` of the zero ratio f = 0, in nats: log(1 + M) + M log((1 + M) / M); 2 log 2 for NCE (M = 1)."""
    return math.log1p(magnification) + magnification * math.log1p(1 / magnification)


def maximum_likelihood(log_ratio_q: Tensor, log_ratio_p: Tensor) -> Tensor:
    """E_p[f] - E_q[f] (LEBM, Pang et al. 2020).

    Where the samples of p are draws of the model itself, its gradient is the gradient of -log likelihood.
    """
    return log_ratio_p.mean() - log_ratio_q.mean()


def nan_above_limit(loss: Tensor, watched: Tensor, limit: float) -> Tensor:
    """`loss` with its gradient, made NaN where `watched` is not finite or exceeds its limit.

    Args:
        loss: () to be minimised.
        watched: () the value that is compared with the limit.
        limit: the highest value of `watched` that is accepted.
    """
    fine = watched.detach().isfinite() & (watched.detach() <= limit)
    return loss * torch.where(fine, 1.0, torch.nan)
