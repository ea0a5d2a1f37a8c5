"""Adaptive multi-stage density ratio estimation on samples in memory.

Stage k trains one network to tell samples of q from samples of the current prior p_{k-1} until the held-out loss stops
improving. The whole network is then multiplied by the gain at which its mean under the new prior equals that under q:
on the line p_{k-1} e^(gain f) this is the maximum of the bound on KL(q || p_{k-1}), so a stage cannot overshoot, and
one that is saturated, as across a wide gap, is strengthened. The sequence ends with the stage that says nothing.

Shapes: N samples, B batch, Z coordinates.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebmscale.density.evidence import Evidence, kl_lower_bound, measure
from ebmscale.density.losses import nce
from ebmscale.density.prior import RatioSequence
from ebmscale.density.schedule import Advance, Decision, Finish, Hold, RollBack, StageState, decide, rate_factor
from ebmscale.errors import DivergenceError
from ebmscale.networks import QuadraticHead, Standardised, initialise, quadratic_part
from ebmscale.ratios.fitted import ROWS_AT_ONCE, StageRow
from ebmscale.ratios.moments import gaussian_ratio
from ebmscale.ratios.negatives import Negatives
from ebmscale.ratios.samples import Split
from ebmscale.ratios.settings import FitSettings
from ebmscale.seeds import torch_generator

Progress = Callable[[StageRow], None]

GAINS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.0)
"""Strengths of a ratio that are tried on held-out samples."""
SATURATED = 0.02
"""A held-out loss below this many nats: the two sides are told apart, and more updates would only sharpen that."""


class _Stage(NamedTuple):
    """A trained stage: its network, held-out evidence, the decision, the scheduler's state after it, and its length."""

    network: Standardised
    evidence: Evidence
    decision: Decision
    state: StageState
    updates: int


def fit_stages(
    sequence: RatioSequence,
    q: Split,
    negatives: Negatives,
    settings: FitSettings,
    generator: torch.Generator,
    seed: int,
    progress: Progress,
) -> tuple[RatioSequence, list[StageRow]]:
    """Stages until one says nothing, adds nothing at any gain, or is the last that is allowed.

    Args:
        sequence: the base with no ratio; its network, a `Standardised` one, is the form of all.
        q: the samples of q.
        negatives: samples of the base; they follow the sequence.
        settings: how.
        generator: of the batches.
        seed: of the networks' weights.
        progress: called at the end of every stage.

    Raises:
        DivergenceError: a stage kept diverging.
    """
    rows: list[StageRow] = []
    state = StageState()
    while not state.finished:
        stage = _train(sequence, state, q, negatives, settings, generator, seed)
        number, state, reason = state.stage, stage.state, stage.decision.reason
        if isinstance(stage.decision, RollBack):
            if state.rollbacks > settings.criteria.max_rollbacks:
                raise DivergenceError(f"Stage {number} of the ratio kept diverging ({reason}); lower the rate.")
            continue
        gain = 0.0
        if not isinstance(stage.decision, Finish) or stage.decision.freeze:
            gain = negatives.tilt(stage.network, _mean(stage.network, q.validation))
            if gain:
                stage.network.gain.fill_(gain)
                sequence = sequence.append(stage.network.state_dict())
                negatives.accept(sequence)
            else:
                reason, state = f"{reason}; but no gain above 0 adds to the bound", replace(state, finished=True)
        rows.append(StageRow(number, stage.updates, stage.evidence, gain, reason))
        progress(rows[-1])
    return sequence, rows


def _train(
    sequence: RatioSequence,
    state: StageState,
    q: Split,
    negatives: Negatives,
    settings: FitSettings,
    generator: torch.Generator,
    seed: int,
) -> _Stage:
    """Trains one stage until the scheduler decides; the network has the weights of its least held-out loss."""
    network = _fresh_network(sequence, state, q, negatives, settings, seed)
    optimizer = torch.optim.Adam(network.parameters(), settings.rate, weight_decay=settings.weight_decay)
    criteria, batch = settings.criteria, settings.batch_size
    best_loss, best = math.inf, copy.deepcopy(network.state_dict())
    updates = began = state.started // batch
    while True:
        now, since = updates * batch, state.settling_since
        evidence = _evidence(network, q.validation, negatives)
        if evidence.loss < best_loss:
            best_loss, best = evidence.loss, copy.deepcopy(network.state_dict())
        elif since is not None and now - since >= criteria.settle_samples and math.isfinite(evidence.loss):
            network.load_state_dict(best)
            evidence = _evidence(network, q.validation, negatives)
        decision, after = _decision(state, evidence, settings, now)
        if not isinstance(decision, Hold):
            return _Stage(network, evidence, decision, after, updates - began)
        if since is None and after.settling_since is not None:
            network.load_state_dict(best)
        state = after
        for _ in range(settings.evidence_every):
            optimizer.param_groups[0]["lr"] = settings.rate * rate_factor(state, criteria, updates * batch)
            z_q = q.train[torch.randint(len(q.train), (batch,), generator=generator)]
            f_q, f_p = network(torch.cat([z_q, negatives.draw(batch)])).split(batch)
            optimizer.zero_grad(set_to_none=True)
            nce(f_q, f_p).backward()
            optimizer.step()
            updates += 1
        negatives.refresh()


def _decision(state: StageState, evidence: Evidence, settings: FitSettings, now: int) -> tuple[Decision, StageState]:
    """The scheduler's decision, and two more: a saturated stage ends at once, and one that adds little is the last."""
    decision, after = decide(state, evidence, settings.criteria, now)
    if isinstance(decision, Hold) and evidence.loss < SATURATED:
        decision, after = Advance("the two sides are told apart"), StageState(state.stage + 1, now)
        if state.stage >= settings.max_stages:
            return Finish(decision.reason, freeze=True), replace(after, finished=True)
    elif isinstance(decision, Advance) and evidence.kl_bound < settings.min_gain:
        return Finish(f"{decision.reason}: little is left", freeze=True), replace(after, finished=True)
    return decision, after


def _fresh_network(
    sequence: RatioSequence, state: StageState, q: Split, negatives: Negatives, settings: FitSettings, seed: int
) -> Standardised:
    """A network that counts in the spread of both sides: the zero function, but for what the moments say."""
    network = copy.deepcopy(sequence.network)
    assert isinstance(network, Standardised)
    network.requires_grad_(True)
    initialise(network, torch_generator(seed, "fit-ratio-weights", state.stage, state.rollbacks))
    both = torch.cat([q.validation, negatives.held_out()[: len(q.validation)]])
    network.set_spread(both.mean(0), both.std(0).clamp(min=1e-12))
    head = quadratic_part(network.inner)
    if head is not None and settings.start == "moments":
        _start_from_moments(network, head, q, negatives)
    return network


def _start_from_moments(network: Standardised, head: QuadraticHead, q: Split, negatives: Negatives) -> None:
    """Gives the head the Gaussian log ratio, as strong as makes the held-out loss least: 1, 1/2, 1/4, ... or 0."""
    p = torch.cat([negatives.draw(part) for part in _parts(len(q.train))])
    try:
        found = gaussian_ratio(network.standardised(q.train), network.standardised(p))
    except ValueError:
        return
    head.assign(*found)
    with torch.no_grad():
        f_q, f_p = network(q.validation), network(negatives.held_out())
    gain = min(GAINS, key=lambda gain: float(nce(gain * f_q, gain * f_p)))
    head.assign(*found.times(gain))


def _parts(num: int) -> list[int]:
    """`num` in parts of at most ROWS_AT_ONCE."""
    return [min(ROWS_AT_ONCE, num - first) for first in range(0, num, ROWS_AT_ONCE)]


@torch.no_grad()
def _mean(network: nn.Module, z: Tensor) -> float:
    return float(network(z).double().mean())


@torch.no_grad()
def _evidence(network: nn.Module, q: Tensor, negatives: Negatives) -> Evidence:
    """All evidence; the bound is that of the ratio as strong as makes it highest, since the gain is set afterwards."""
    f_q, f_p = network(q).double(), network(negatives.held_out()).double()
    bound, error = max(kl_lower_bound(gain * f_q, gain * f_p) for gain in GAINS if gain)
    return replace(measure(f_q, f_p), kl_bound=bound, kl_bound_error=error)
