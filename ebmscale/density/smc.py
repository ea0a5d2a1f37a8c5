"""Sequential Monte Carlo and annealed importance sampling: log Z with error bars, and samples at the end of a path.

A *path* is a list of legs. A leg goes from one unnormalised density to the next along rungs
log p_t = log p_start + t * increment, 0 <= t <= 1; the stages of a `RatioSequence` are legs, and a likelihood is one.
Rungs are put where the effective sample size asks for them, or given. At every rung particles are weighted by the
step, resampled where their weights have become uneven, and moved by a kernel that leaves the rung's density as it is.

Particles come in groups that never mix: every group is an unbiased estimate of Z of its own (with given rungs and an
adjusted kernel), so their spread is the standard error, and they may be spread over workers. No group knows of another:
its noise depends on (leg, rung) alone.

Shapes: G groups, N particles of a group, Z latent, K legs, R rungs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from ebmscale.density.estimates import bisect, bridge, conditional_ess, tilted_mean
from ebmscale.density.langevin import differentiate, start
from ebmscale.density.moves import MoveSettings, Noise, adapted, chosen, move
from ebmscale.density.prior import RatioSequence
from ebmscale.density.resampling import resample_systematically

LogDensity = Callable[[Tensor], Tensor]
MAX_RUNGS = 2000


class Leg(NamedTuple):
    """A piece of a path; both functions map z (M, Z) to (M,), each entry depending on its own row.

    Attributes:
        log_density: of the leg's start, up to a constant.
        increment: what is added to it by the leg's end.
    """

    log_density: LogDensity
    increment: LogDensity

    def reversed(self) -> "Leg":
        """The leg walked the other way."""
        return Leg(lambda z: self.log_density(z) + self.increment(z), lambda z: -self.increment(z))


@dataclass(frozen=True)
class Annealing:
    """How a path is walked.

    Attributes:
        ess: the conditional effective sample size, as a fraction, that a step to the next rung keeps.
        resample_below: groups whose effective sample size, as a fraction, is below are resampled; 0 is annealed
            importance sampling, 1 resamples at every rung.
        moves: the kernel.
    """

    ess: float = 0.7
    resample_below: float = 0.5
    moves: MoveSettings = field(default_factory=MoveSettings)


@dataclass
class Annealed:
    """What a walk ended with.

    Attributes:
        z: (G, N, Z) particles.
        log_weights: (G, N), normalised in every group.
        log_z: (G, K) log of the ratio of the normalisers of every leg's ends.
        log_z_bridge: (G, K) the same by stepping stones: the ratio over every step from the particles on both its ends
            (Bennett 1976), those of the upper end after they were moved. Where the two disagree by more than their
            error, the particles did not follow the path.
        end: (G,) where the last leg ended; 1 unless it was told to stop earlier.
        rungs: of every leg, the rungs (G, R) that were walked.
        step_size: (G,) of the kernel at the end.
        acceptance: mean acceptance probability of every rung, over groups.
        ess: least effective sample size, as a fraction, before resampling, over rungs and groups.
    """

    z: Tensor
    log_weights: Tensor
    log_z: Tensor
    log_z_bridge: Tensor
    end: Tensor
    step_size: Tensor
    rungs: list[Tensor] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)
    ess: float = 1.0

    @property
    def num_rungs(self) -> int:
        """Over all legs."""
        return sum(rungs.shape[1] for rungs in self.rungs)


def stage_legs(prior: RatioSequence) -> list[Leg]:
    """The path p_0, p_1, ..., p_K of a ratio sequence, a leg for every stage."""

    def ratio(stage: int) -> LogDensity:
        weights = prior.stage_weights(stage)
        return lambda z: functional_call(prior.network, weights, (z,))

    return [Leg(prior.prefix(k - 1).log_density, ratio(k)) for k in range(1, prior.num_stages + 1)]


def anneal(
    legs: Sequence[Leg],
    z: Tensor,
    noise: Callable[[int, int], Noise],
    settings: Annealing,
    *,
    rungs: Sequence[Tensor] | None = None,
    until: float | None = None,
    limit: float = 1.0,
) -> Annealed:
    """Walks particles z (G, N, Z), exact samples of the path's start, to its end.

    Args:
        legs: the path.
        z: the particles.
        noise: gives the noise, of G * N rows, of a rung; called with (leg, rung), both counted from 0.
        settings: how it is walked.
        rungs: of every leg, where to stop on the way (G, R), ending at 1; None looks for them. Only with given rungs
            is the estimate of Z unbiased.
        until: ends the last leg where the mean of its increment has risen to this value.
        limit: where the last leg ends at the latest.

    Raises:
        ValueError: an increment is not a number, or a leg needs more than `MAX_RUNGS` rungs.
    """
    num_groups, num, _ = z.shape
    ones = torch.ones(num_groups, dtype=torch.float64, device=z.device)
    nothing = ones[:, None][:, :0]
    state = Annealed(
        z=z,
        log_weights=-math.log(num) * ones[:, None].expand(-1, num),
        log_z=nothing,
        log_z_bridge=nothing,
        end=ones,
        step_size=settings.moves.step_size * ones,
    )
    for index, leg in enumerate(legs):
        is_last = index == len(legs) - 1
        _walk(
            leg,
            state,
            partial(noise, index),
            settings,
            given=None if rungs is None else rungs[index],
            until=until if is_last else None,
            limit=limit if is_last else 1.0,
        )
    return state


def _walk(
    leg: Leg,
    state: Annealed,
    noise: Callable[[int], Noise],
    settings: Annealing,
    given: Tensor | None,
    until: float | None,
    limit: float,
) -> None:
    """Walks one leg; `state` is brought to its end."""
    num_groups = len(state.z)
    t = torch.zeros(num_groups, dtype=torch.float64, device=state.z.device)
    done = torch.zeros_like(t, dtype=torch.bool)
    forward, bridged, visited = torch.zeros_like(t), torch.zeros_like(t), []
    increment = _increment(leg, state.z)
    rung = 0
    while not bool(done.all()):
        if rung == MAX_RUNGS:
            raise ValueError(f"a leg needs more than {MAX_RUNGS} rungs: its ends are too far apart for the particles")
        draws = noise(rung)
        if given is not None:
            step = torch.as_tensor(given[:, rung], dtype=t.dtype) - t
            ends = torch.full_like(done, rung == given.shape[1] - 1)
        else:
            step, ends = _next_step(increment, state.log_weights, limit - t, settings.ess, until)
        step = torch.where(done, 0.0, step)
        lower, lower_weights = step[:, None] * increment, state.log_weights
        gain = (lower_weights + lower).logsumexp(dim=1)
        forward += gain
        state.log_weights = lower_weights + lower - gain[:, None]
        t = torch.where(ends & ~done & (given is None) & (until is None), limit, t + step)
        _resample(state, draws, settings.resample_below, ~done)
        state.acceptance.append(_move(leg, state, t, draws, settings.moves, ~done))
        increment = _increment(leg, state.z)
        bridged += bridge(lower, lower_weights.exp(), step[:, None] * increment, state.log_weights.exp(), gain)
        visited.append(t.clone())
        done = done | ends
        rung += 1
    state.rungs.append(torch.stack(visited, dim=1))
    state.log_z = torch.cat([state.log_z, forward[:, None]], dim=1)
    state.log_z_bridge = torch.cat([state.log_z_bridge, bridged[:, None]], dim=1)
    state.end = t


def _increment(leg: Leg, z: Tensor) -> Tensor:
    """The increment at particles (G, N, Z), as (G, N) in float64."""
    with torch.no_grad():
        value = leg.increment(z.flatten(0, 1)).double().view(z.shape[:2])
    if bool(value.isnan().any()):
        raise ValueError("the increment of a leg is not a number at some particle")
    return value


def _next_step(
    increment: Tensor, log_weights: Tensor, room: Tensor, ess: float, until: float | None
) -> tuple[Tensor, Tensor]:
    """The longest steps (G,) that keep the conditional effective sample size, and which of them end the leg."""
    step = bisect(lambda s: conditional_ess(increment, log_weights, s) >= ess, room)
    if until is None:
        return step, step >= room
    stop = bisect(lambda s: tilted_mean(increment, log_weights, s) <= until, room)
    stop = torch.where(tilted_mean(increment, log_weights, torch.zeros_like(room)) >= until, 0.0, stop)
    return torch.minimum(step, stop), (stop <= step) | (step >= room)


def _resample(state: Annealed, draws: Noise, threshold: float, active: Tensor) -> None:
    """Resamples the groups whose weights have become uneven."""
    num_groups, num, dim = state.z.shape
    ess = torch.exp(-(2 * state.log_weights).logsumexp(dim=1)) / num
    state.ess = min(state.ess, float(ess.min()))
    if threshold == 0:
        return
    placed = draws.uniform().view(num_groups, num)[:, 0]
    indices = resample_systematically(state.log_weights, placed, num)
    uneven = (active & (ess < threshold))[:, None]
    indices = torch.where(uneven, indices, torch.arange(num, device=indices.device))
    state.z = state.z.gather(1, indices[:, :, None].expand(-1, -1, dim))
    state.log_weights = torch.where(uneven, -math.log(num), state.log_weights)


def _move(leg: Leg, state: Annealed, t: Tensor, draws: Noise, settings: MoveSettings, active: Tensor) -> float:
    """Moves the particles of the active groups under the rung's density; the mean acceptance probability."""
    num_groups, num, dim = state.z.shape
    rows = t.to(state.z.dtype).repeat_interleave(num)
    target = differentiate(lambda z: leg.log_density(z) + rows * leg.increment(z))
    scale = _spread(state).repeat_interleave(num, dim=0)
    chains = start(target, state.z.flatten(0, 1))
    moving, acceptance = active.repeat_interleave(num), torch.ones_like(t)
    for _ in range(settings.num_moves):
        steps = state.step_size.repeat_interleave(num)
        moved, probability = move(chains, draws.normal(dim), draws.uniform(), target, steps, scale, settings)
        chains = chosen(moving, moved, chains)
        acceptance = probability.view(num_groups, num).mean(1).double()
        state.step_size = torch.where(active, adapted(state.step_size, acceptance, settings), state.step_size)
    state.z = chains.z.view_as(state.z)
    return float(acceptance[active].mean())


def _spread(state: Annealed) -> Tensor:
    """The particles' weighted standard deviation in every coordinate (G, Z)."""
    weights = state.log_weights.exp()[:, :, None].to(state.z.dtype)
    mean = (weights * state.z).sum(1, keepdim=True)
    return (weights * (state.z - mean).square()).sum(1).sqrt().clamp(min=1e-12)
