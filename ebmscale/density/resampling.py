"""Resampling: from samples of p with weights q / p to samples of q.

Shapes: G groups, C candidates of a group, N draws of a group.
"""

import torch
from torch import Tensor


def resample(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices (G, N) of candidates, drawn in proportion to their weights e^log_weights (G, C), group by group.

    Stratified: draw n takes the n-th of N equal parts of the weights' distribution, so that a candidate of
    normalised weight w is drawn N w times on average, and hardly more or less often.

    Args:
        log_weights: (G, C), up to a constant of each group.
        uniform: (G, N) independent draws in [0, 1).
    """
    num_draws = uniform.shape[1]
    cumulative = torch.softmax(log_weights.double(), dim=1).cumsum(dim=1)
    points = (torch.arange(num_draws, device=uniform.device) + uniform.double()) / num_draws
    return torch.searchsorted(cumulative, points).clamp(max=log_weights.shape[1] - 1)


def resample_systematically(log_weights: Tensor, uniform: Tensor, num_draws: int) -> Tensor:
    """Indices (G, N) as `resample`, all N = `num_draws` of a group placed by one draw of `uniform` (G,).

    A candidate of normalised weight w is drawn floor(N w) or ceil(N w) times: never fewer, never more.
    """
    return resample(log_weights, uniform[:, None].expand(-1, num_draws))
