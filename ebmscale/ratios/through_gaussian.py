"""The ratio of q to p where both were fitted from the Gaussian with the moments of p's samples, and its errors.

Shapes: N samples of p, M samples of q, Z coordinates.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ebmscale.density.bases import Gaussian
from ebmscale.density.evidence import measure
from ebmscale.ratios.fitted import FittedRatio, mean_and_error
from ebmscale.ratios.samples import Split


def against(p: FittedRatio, q: FittedRatio, parts_p: Split, parts_q: Split) -> FittedRatio:
    """The ratio of q to p, both fitted from one base."""
    ratio = replace(q, reference=p)
    f_q, f_p = (ratio.log_ratio(part.view(-1, *q.shape)) for part in (parts_q.test, parts_p.test))
    kl, error = mean_and_error(f_q)
    error = math.hypot(error, p.normaliser.error, q.normaliser.error)
    found = replace(ratio, kl=kl, kl_error=error, missing=p.missing + q.missing, calibration=measure(f_q, f_p))
    return replace(found, repeated=max(p.repeated, q.repeated), stopped=q.stopped or p.stopped)


def with_errors_of(base: Gaussian, found: FittedRatio, p: Tensor, q: Tensor) -> FittedRatio:
    """The ratio with what the number of p's samples adds to the error of KL(q || p), and how far p is extrapolated.

    Args:
        base: the Gaussian with the moments of p.
        found: the ratio through it.
        p: (N, Z) all samples.
        q: (M, Z) all samples.
    """
    if found.reference is None:
        of_p, of_q = (base.log_density(part) for part in (p, q))
    else:
        of_p, of_q = (found.reference.log_density(part.view(-1, *found.shape)) for part in (p, q))
    beyond = float((of_q < of_p.min()).double().mean())
    return replace(found, kl_error=math.hypot(found.kl_error, moments_error(base, p, q)), extrapolated=beyond)


def moments_error(base: Gaussian, p: Tensor, q: Tensor) -> float:
    """The standard error of E_q[log p], as p's samples give mean and covariance of the Gaussian p (delta method).

    A sample y of p, in coordinates in which p is N(0, I), moves E_q[log p] by a^T y + y^T (S - I) y / 2 in proportion,
    with a and S the first and second moments of q there.

    Args:
        base: the Gaussian with the moments of p's samples.
        p: (N, Z).
        q: (M, Z).
    """
    root, mean = base.cholesky.double(), base.mean.double()
    white_p, white_q = (torch.linalg.solve_triangular(root, (part.double() - mean).T, upper=False).T for part in (p, q))
    second = white_q.T @ white_q / len(q) - torch.eye(base.dim, dtype=torch.float64)
    moved = white_p @ white_q.mean(0) + 0.5 * ((white_p @ second) * white_p).sum(1)
    return float(moved.std() / math.sqrt(len(p)))
