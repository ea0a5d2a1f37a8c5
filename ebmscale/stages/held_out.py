"""What is measured of a ratio on samples that no update has seen, over all ranks.

Shapes: B rows of this rank, M rows of all ranks, Z coordinates.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebmscale.density.evidence import Evidence, measure
from ebmscale.density.prior import RatioSequence
from ebmscale.model.sampler import Agreement, agreement
from ebmscale.stages.record import Memorised
from ebmscale.stages.supplies import Negatives, unweighted
from ebmscale.stages.trainer import evaluated
from ebmscale.world import World, owned_rows


class HeldOutSides(NamedTuple):
    """This rank's held-out posterior latents (B, Z), and negatives that no update has seen."""

    q: Tensor
    fresh: Negatives


class Unseen(NamedTuple):
    """Mean losses on fresh negatives and on held-out posteriors, in nats."""

    fresh: float
    held_out: float


class Judged(NamedTuple):
    """The evidence of a ratio, and its losses on each side."""

    evidence: Evidence
    unseen: Unseen


def judge(
    log_ratio: Callable[[Tensor], Tensor],
    sides: HeldOutSides,
    num_streams: int,
    world: World,
    grad_norm: float,
    judges_gain: bool,
) -> Judged:
    """Evidence of a ratio, the same on every rank and for any number of ranks (collective).

    Args:
        log_ratio: its values (N,) at points (N, Z).
        sides: of this rank.
        num_streams: S, by which rows are shared out.
        world: the ranks.
        grad_norm: see `Evidence`.
        judges_gain: see `density.evidence.measure`.
    """
    with torch.no_grad():
        own = log_ratio(sides.q), log_ratio(sides.fresh.z), sides.fresh.weights
    f_q, f_p, weights = (rows_of_all(part, num_streams, world) for part in own)
    evidence = measure(f_q, unweighted(f_p, weights), grad_norm, judges_gain)
    fresh = float((weights.double() * softplus(f_p)).mean())
    return Judged(evidence, Unseen(fresh, float(softplus(-f_q.double()).mean())))


def ratio_of(network: nn.Module, weights: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The ratio with these weights in the form of a network: its values (N,) at points (N, Z), in float64."""
    own = copy.deepcopy(network)
    own.load_state_dict(weights)
    return partial(evaluated, own)


def rows_of_all(own: Tensor, num_streams: int, world: World) -> Tensor:
    """The rows of all ranks (M, ...) in the order of their numbers, from this rank's (B, ...) (collective)."""
    parts = world.gather(own)
    num, size = sum(map(len, parts)), len(parts)
    found = torch.cat([part.to(own) for part in parts])
    ranks = [World(rank, size, world.device) for rank in range(size)]
    places = torch.cat([owned_rows(num, num_streams, rank) for rank in ranks])
    return found[places.argsort().to(own.device)]


@torch.no_grad()
def memorised(
    log_ratio: Callable[[Tensor], Tensor], used: Negatives | None, train: Tensor, unseen: Unseen, world: World
) -> Memorised | None:
    """What a ratio memorised (collective); None where the negatives that updates used are not known.

    Args:
        log_ratio: of the ratio.
        used: this rank's negatives.
        train: this rank's posteriors that updates use (B, Z).
        unseen: the losses on what no update uses, over all ranks.
        world: the ranks.
    """
    if used is None:
        return None
    negative = (used.weights.double() * softplus(log_ratio(used.z)).double()).sum()
    positive = softplus(-log_ratio(train)).double().sum()
    counts = negative.new_tensor([len(used.z), len(train)])
    sums = world.sum(torch.cat([torch.stack([negative, positive]), counts])).tolist()
    return Memorised(sums[0] / sums[2], unseen.fresh, sums[1] / sums[3], unseen.held_out)


def check(prior: RatioSequence, samples: Tensor, q: Tensor, world: World) -> Agreement:
    """Whether samples of p_k and held-out posteriors have the same mean log density under it (collective).

    Args:
        prior: p_k.
        samples: of it, this rank's points (N, Z); where weights resampled them, some are copies.
        q: (M, Z) held-out posterior latents of all ranks, in the coordinates of the ratios.
        world: the ranks.
    """
    drawn = prior.coordinates(torch.cat([part.to(q) for part in world.gather(samples)]))
    unique = len(drawn.unique(dim=0)) / len(drawn)
    return agreement(prior.in_coordinates(), drawn, q, unique)


def said(stage: int, checks: Mapping[int, Agreement]) -> str:
    """The check of p_k in words, where it fails; else nothing."""
    found = checks.get(stage)
    if found is None or not found.fails:
        return ""
    side = "above" if found.difference > 0 else "below"
    return f"; samples of p_{stage} lie {abs(found.difference):.2f} +- {found.error:.2f} nats {side} posteriors"
