"""How many updates of the ratio network a batch of images brings, where the configuration leaves that open."""

import math

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ebmscale.config import RunConfig
from ebmscale.model.build import build_on_meta

USUAL, MOST = 8, 64
SHARE = 3.0
"""Operations of the ratio updates for one of the encoder, where posteriors stand still: three quarters of the work."""
BOTH_WAYS = 3.0
"""Passes forward that a pass forward and back is worth."""


def updates_per_batch(config: RunConfig, shape: tuple[int, ...] | None) -> int:
    """The number of ratio updates for every batch of images.

    `stages.updates_per_batch`, if it is a number. `auto` is 8, and more where the generator stands still and an encoder
    alone infers the latents: so many that the ratio and not the encoder takes most of the operations. They are counted
    and not timed, so the number is the same on every machine.

    Args:
        config: of the run.
        shape: (C, H, W) of the images; None where it is not known, which counts as a moving generator.

    Raises:
        ConfigError: there is no architecture for images of that shape.
    """
    given = config.stages.updates_per_batch
    if given != "auto":
        return given
    still = config.generator_stops <= config.stages.start_samples and config.is_amortised
    if shape is None or not still or config.num_live or not config.most_stages:
        return USUAL
    networks, ratio = build_on_meta(config, shape)
    assert networks.encoder is not None
    of_batch = config.train.batch_size * _operations(networks.encoder, torch.empty(1, *shape, device="meta"))
    of_row = _operations(ratio, torch.empty(1, config.model.latent_dim, device="meta"))
    of_update = BOTH_WAYS * 2 * config.stages.batch_size * of_row
    return min(max(math.ceil(SHARE * of_batch / of_update), USUAL), MOST)


@torch.no_grad()
def _operations(network: nn.Module, row: Tensor) -> int:
    """Floating-point operations of one row (1, ...)."""
    with FlopCounterMode(display=False) as counter:
        network(row)
    return counter.get_total_flops()
