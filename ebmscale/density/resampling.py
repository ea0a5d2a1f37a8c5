"""Resampling: samples of p with weights q / p become samples of q.

Shapes: G groups, C candidates of a group, N draws of a group.
"""

import torch
from torch import Tensor


def resample_systematically(log_weights: Tensor, uniform: Tensor, num_draws: int) -> Tensor:
    """Indices (G, N) of candidates, drawn in proportion to their weights e^log_weights (G, C), group by group.

    This is systematic resampling (Kitagawa 1996; Douc & Cappe 2005): one uniform draw places N evenly spaced points on
    the cumulative weights. A candidate of normalised weight w is drawn floor(N w) or ceil(N w) times.

    Args:
        log_weights: (G, C), up to a constant of each group.
        uniform: (G,) independent draws in [0, 1).
        num_draws: N.
    """
    cumulative = torch.softmax(log_weights.double(), dim=1).cumsum(dim=1)
    points = (torch.arange(num_draws, device=uniform.device) + uniform.double()[:, None]) / num_draws
    return torch.searchsorted(cumulative, points).clamp(max=log_weights.shape[1] - 1)
