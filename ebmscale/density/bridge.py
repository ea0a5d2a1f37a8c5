"""The fixed bridge of telescoping density ratio estimation (TRE, Rhodes et al. 2020), a baseline.

A fixed number of waymarks lies between a draw of p_0 and a draw of q. K ratios, one between every two neighbouring
waymarks, are trained at the same time. Their product is q / p_0. The stages of `density.schedule` need no waymarks.

Shapes: B pairs, Z latent, K ratios.
"""

import torch
from torch import Tensor

from ebmscale.density.losses import nce


def waymarks(z_0: Tensor, z_q: Tensor, num_ratios: int) -> Tensor:
    """The waymarks z_m = sqrt(1 - a_m^2) z_0 + a_m z_q with a_m = m / K, m = 0..K (Rhodes et al. 2020, section 3.1).

    Args:
        z_0: (B, Z) draws of p_0.
        z_q: (B, Z) draws of q.
        num_ratios: K.

    Returns:
        (K + 1, B, Z).
    """
    a = torch.linspace(0, 1, num_ratios + 1, device=z_0.device, dtype=z_0.dtype)[:, None, None]
    return (1 - a.square()).sqrt() * z_0 + a * z_q


def telescope_loss(log_ratio_upper: Tensor, log_ratio_lower: Tensor) -> Tensor:
    """Mean of `nce` over the K ratios: f_m at the waymarks z_m (K, B) against f_m at z_{m-1} (K, B), in nats.

    It is a mean and not a sum, so a learning rate has the same effect for every K. It is 2 log 2 = 1.3863 where every
    f_m is 0.
    """
    losses = [nce(upper, lower) for upper, lower in zip(log_ratio_upper, log_ratio_lower, strict=True)]
    return torch.stack(losses).mean()
