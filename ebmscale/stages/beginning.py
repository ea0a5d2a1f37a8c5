"""The network that a stage begins with: the zero function in the spread of both sides, or what their moments say.

Shapes: M samples of q, N negatives, Z coordinates.
"""

import copy

import torch
from torch import Tensor

from ebmscale.density.losses import chance_loss
from ebmscale.density.prior import RatioSequence
from ebmscale.networks import (
    NARROW_BOUND,
    WIDE_BOUND,
    QuadraticHead,
    Standardised,
    initialise,
    set_bound,
    take_features,
)
from ebmscale.seeds import torch_generator
from ebmscale.stages.moments import gaussian_ratio
from ebmscale.stages.trainer import HeldOut, nce_loss

GAINS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.0)
"""Strengths of the moments' ratio that are tried on held-out samples."""


def begin(sequence: RatioSequence, samples: HeldOut, bound: float, seed: int) -> Standardised:
    """The network of a new stage: the zero function, with the hidden layers of the stage before, which learns faster.

    Args:
        sequence: p_{k-1}.
        samples: of both sides, in whose spread it counts.
        bound: see `networks.Bounded`.
        seed: of the weights.
    """
    network = copy.deepcopy(sequence.network).requires_grad_(True)
    assert isinstance(network, Standardised)
    initialise(network, torch_generator(seed, "stage-weights", sequence.num_stages + 1))
    if sequence.num_stages:
        take_features(network, sequence.stage_weights(sequence.num_stages))
    q, p = samples.q, samples.negatives.z
    num = min(len(q), len(p))
    both = torch.cat([q[:num], p[:num]])
    network.set_spread(both.mean(0), both.std(0).clamp(min=1e-12))
    set_bound(network, bound)
    return network


def next_weights(
    prior: RatioSequence, spread: tuple[Tensor, Tensor] | None, seed: int, stage: int, tries: int
) -> dict[str, Tensor]:
    """The weights that a run's next ratio begins with, or the next try of this one.

    Args:
        prior: p_{k-1}.
        spread: mean and standard deviation (Z,) of p_{k-1}; None where networks do not standardise their inputs.
        seed: of the run.
        stage: k.
        tries: of this stage before.
    """
    network = copy.deepcopy(prior.network)
    initialise(network, torch_generator(seed, "ratio-weights", stage, tries))
    if spread is not None and isinstance(network, Standardised):
        network.set_spread(*spread)
        if prior.num_stages and not tries:
            take_features(network, prior.stage_weights(prior.num_stages))
    set_bound(network, WIDE_BOUND)
    return network.state_dict()


def bound_for(loss: float) -> float:
    """The bound of a ratio whose held-out loss is that: the wider the gap, the more a ratio must be able to say."""
    return NARROW_BOUND + (WIDE_BOUND - NARROW_BOUND) * max(1 - loss / chance_loss(1), 0.0) ** 2


@torch.no_grad()
def start_from_moments(network: Standardised, head: QuadraticHead, q: Tensor, p: Tensor, samples: HeldOut) -> None:
    """Gives the head the Gaussian log ratio, as strong as makes the loss least: 1, 1/2, 1/4, ... or 0.

    Args:
        network: of a new stage.
        head: its quadratic part.
        q: (M, Z) of q, whose moments count.
        p: (N, Z) of p_{k-1}.
        samples: held out, by which the strength is chosen.
    """
    try:
        found = gaussian_ratio(network.standardised(q), network.standardised(p))
    except ValueError:
        return
    losses = {}
    for gain in GAINS:
        head.assign(*found.times(gain))
        losses[gain] = nce_loss(network, samples)
    head.assign(*found.times(min(losses, key=lambda gain: losses[gain])))
