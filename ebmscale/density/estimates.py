"""Estimates from weighted particles: normalisers with their standard errors, and the size of an annealing step.

Shapes: G groups, N particles of a group.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SMALLEST_STEP = 1e-13
NEWTON_STEPS = 20
SINGULAR = 1e-12
"""A determinant below this part of the product of the variances is zero."""


def pooled(log_z: Tensor) -> tuple[float, float]:
    """log of the mean of independent estimates e^log_z (G,) of Z, and its standard error by the delta method.

    The standard error of a single estimate is unknown, and is returned as NaN.
    """
    num = len(log_z)
    log_mean = torch.logsumexp(log_z.double(), 0) - math.log(num)
    relative = torch.exp(log_z.double() - log_mean)
    error = float(relative.std() / math.sqrt(num)) if num > 1 else math.nan
    return float(log_mean), error


def importance_estimate(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean of weights e^log_weights (..., N) of independent particles, and its standard error (...)."""
    num = log_weights.shape[-1]
    log_mean = log_weights.double().logsumexp(-1) - math.log(num)
    return log_mean, torch.exp(log_weights.double() - log_mean[..., None]).std(-1) / math.sqrt(num)


def bennett_ratio(lower: Tensor, lower_weights: Tensor, upper: Tensor, upper_weights: Tensor, near: Tensor) -> Tensor:
    """log of the ratio of two normalisers (G,) by Bennett's acceptance ratio (1976), from weighted particles of both.

    Args:
        lower: (G, N) log density of the upper side minus that of the lower one, at particles of the lower one.
        lower_weights: (G, N), normalised.
        upper: (G, N) the same at particles of the upper one.
        upper_weights: (G, N), normalised.
        near: (G,) an initial estimate. The search interval contains it.
    """
    ends = torch.stack([lower.amin(1), upper.amin(1), lower.amax(1), upper.amax(1), near]).clamp(-1e300, 1e300)
    low, high = ends.amin(0), ends.amax(0)
    for _ in range(80):
        c = 0.5 * (low + high)
        taken = (lower_weights * torch.sigmoid(lower - c[:, None])).sum(1)
        given = (upper_weights * torch.sigmoid(c[:, None] - upper)).sum(1)
        low, high = torch.where(taken > given, c, low), torch.where(taken > given, high, c)
    return 0.5 * (low + high)


def bridge_estimate(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """log of the ratio of two normalisers (), and its standard error, from independent samples of both sides.

    This is bridge sampling (Bennett 1976; Meng & Wong 1996). A few samples with large differences cannot carry the
    result, as they can in `importance_estimate`, because every sample counts by a probability.

    Args:
        lower: (N,) log density of the upper side minus that of the lower one, at samples of the lower one.
        upper: (M,) the same at samples of the upper one.
    """
    lower, upper = lower.double(), upper.double()
    even = [torch.full_like(side, 1 / len(side))[None] for side in (lower, upper)]
    log_ratio = bennett_ratio(lower[None], even[0], upper[None], even[1], lower.new_zeros(1))[0]
    taken, given = torch.sigmoid(lower - log_ratio), torch.sigmoid(log_ratio - upper)
    slope = torch.stack([(side * (1 - side)).mean() for side in (taken, given)]).sum()
    variance = torch.stack([side.var() / len(side) for side in (taken, given)]).sum()
    return log_ratio, variance.sqrt() / slope.clamp_min(torch.finfo(torch.float64).tiny)


def conditional_ess(increment: Tensor, log_weights: Tensor, step: Tensor) -> Tensor:
    """The conditional effective sample size of a step s, as a fraction in (0, 1] (G,) (Zhou, Johansen & Aston 2016).

    Args:
        increment: (G, N) what a full step adds to the log density.
        log_weights: (G, N) log W, normalised in every group.
        step: (G,) s. The new weights are W e^(s increment). A step of 0 gives 1.
    """
    raised = step[:, None] * increment
    return torch.exp(2 * (log_weights + raised).logsumexp(1) - (log_weights + 2 * raised).logsumexp(1))


def tilted_mean(increment: Tensor, log_weights: Tensor, step: Tensor) -> Tensor:
    """The mean (G,) of the increment (G, N) under the weights W e^(s increment), with s = `step` (G,)."""
    weights = torch.softmax(log_weights + step[:, None] * increment, dim=1)
    return torch.where(weights > 0, weights * increment, 0.0).sum(1)


def matching_tilt(statistics: Tensor, means: Tensor, least_share: float) -> Tensor:
    """The coefficients s (2,) for which particles with weights e^(s . T) have given means of two statistics T.

    They maximise s . m - log mean e^(s . T), which is concave. Newton's method finds them. Where fewer than
    `least_share` of the particles would count, the way from 0 to s ends there.

    Args:
        statistics: (N, 2) T at the particles, in float64.
        means: (2,) m.
        least_share: effective sample size of the weights, as a fraction.
    """
    tilt = torch.zeros_like(means)

    # The results of matrix products and of LAPACK can depend on where numbers lie in memory. These sums do not.
    def raised(coefficients: Tensor) -> Tensor:
        return (statistics * coefficients).sum(1)

    def share(coefficients: Tensor) -> Tensor:
        return 1 / (len(statistics) * torch.softmax(raised(coefficients), 0).square().sum())

    def value(coefficients: Tensor) -> float:
        return float((coefficients * means).sum() - raised(coefficients).logsumexp(0))

    for _ in range(NEWTON_STEPS):
        weights = torch.softmax(raised(tilt), 0)[:, None]
        mean = (weights * statistics).sum(0)
        centred = statistics - mean
        covariance = (weights[:, :, None] * centred[:, :, None] * centred[:, None]).sum(0)
        step, size = solved(covariance, means - mean), 1.0
        while size > SMALLEST_STEP and not value(tilt + size * step) > value(tilt):
            size /= 2
        if size <= SMALLEST_STEP:
            break
        tilt = tilt + size * step
    ones = torch.ones(1, dtype=torch.float64, device=means.device)
    return largest_step(lambda s: (share(s * tilt) >= least_share)[None], ones) * tilt


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """x (2,) with A x = b for a covariance A (2, 2); of a singular one an x with the larger variance alone."""
    (a, b), (_, c) = matrix
    determinant = a * c - b * b
    alone = torch.where(a >= c, torch.stack([right[0] / a, 0 * b]), torch.stack([0 * b, right[1] / c]))
    both = torch.stack([c * right[0] - b * right[1], a * right[1] - b * right[0]]) / determinant
    return torch.where(determinant > SINGULAR * a * c, both, alone).nan_to_num(0.0, 0.0, 0.0)


def largest_step(holds: Callable[[Tensor], Tensor], room: Tensor) -> Tensor:
    """The largest s <= `room` (G,) for which a condition holds, found by bisection of log s.

    The logarithm is bisected because s can be very small where an increment is steep.

    Args:
        holds: maps steps (G,) to booleans (G,). It must hold for all steps below a limit and for none above it.
        room: (G,) the largest step allowed.
    """
    low, high = (SMALLEST_STEP * room).clamp(min=1e-300).log(), room.clamp(min=1e-300).log()
    whole = holds(room)
    for _ in range(60):
        middle = 0.5 * (low + high)
        good = holds(middle.exp())
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.where(whole, room, low.exp())
