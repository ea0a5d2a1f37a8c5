"""The fixed bridge of telescoping density ratio estimation (TRE, Rhodes et al. 2020), a baseline.

Waymarks lie between a draw of p_0 and one of q, chosen beforehand, and K ratios, one between every two neighbours,
are trained at the same time; their product is q / p_0. The stages of `density.schedule` need no such choice.

Shapes: B pairs, Z latent, K ratios.
"""

import torch
from torch import Tensor

from ebmscale.density.losses import nce


def waymarks(z_0: Tensor, z_q: Tensor, num_ratios: int) -> Tensor:
    """z_m = sqrt(1 - a_m^2) z_0 + a_m z_q with a_m = m / K for m = 0..K, as (K + 1, B, Z); z_0 of p_0, z_q of q."""
    a = torch.linspace(0, 1, num_ratios + 1, device=z_0.device, dtype=z_0.dtype)[:, None, None]
    return (1 - a.square()).sqrt() * z_0 + a * z_q


def telescope_loss(log_ratio_upper: Tensor, log_ratio_lower: Tensor) -> Tensor:
    """Mean over the K ratios of `nce`: f_m at the waymarks z_m (K, B) against f_m at z_{m-1} (K, B).

    The mean, not the sum, so that a learning rate means the same for every K; K 2 log 2 / K = 1.3863 where no ratio
    says anything.
    """
    losses = [nce(upper, lower) for upper, lower in zip(log_ratio_upper, log_ratio_lower, strict=True)]
    return torch.stack(losses).mean()
