"""Sequential Monte Carlo and annealed importance sampling: log Z with error bars, and samples at the end of a path.

A *path* is a list of legs. A leg leads from one unnormalised density to the next along rungs
log p_t = log p_start + t * increment, 0 <= t <= 1. Each stage of a `RatioSequence` is a leg; so is a likelihood. Rungs
are given, or placed so that a step keeps a given conditional effective sample size. At every rung the particles are
weighted by the step, resampled if their weights are uneven, and moved by a kernel that leaves the density invariant
(Del Moral, Doucet & Jasra 2006).

Particles form groups that are independent of one another. With given rungs and an adjusted kernel every group gives an
unbiased estimate of Z. The standard error comes from the spread of these estimates. Groups may lie on different
workers, since the noise of a group depends on (leg, rung) alone.

Shapes: G groups, N particles of a group, Z latent, K legs, R rungs.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ebmscale.density.estimates import bennett_ratio, conditional_ess, largest_step, pooled, tilted_mean
from ebmscale.density.langevin import start
from ebmscale.density.moves import MoveSettings, Noise, adapted, chosen, jittered, move
from ebmscale.density.path import Annealed, Annealing, Leg, Normaliser, WalkPlan
from ebmscale.density.resampling import resample_systematically

MAX_RUNGS = 2000


def normaliser(walked: Annealed) -> Normaliser:
    """log Z over all legs of a walk in nats, with its standard error from the spread of the groups."""
    log_z, error = pooled(walked.log_z.sum(1))
    return Normaliser(log_z, error, pooled(walked.log_z_bridge.sum(1))[0])


def anneal(
    legs: Sequence[Leg],
    z: Tensor,
    noise: Callable[[int, int], Noise],
    settings: Annealing,
    *,
    plans: Sequence[WalkPlan] | None = None,
    until: float | None = None,
    limit: float = 1.0,
) -> Annealed:
    """Moves particles along a path, from exact samples of its start to its end.

    Args:
        legs: the path.
        z: (G, N, Z) the particles: exact samples of the start.
        noise: returns the noise of a rung, of G * N rows. It is called with (leg, rung), both counted from 0.
        settings: of the walk.
        plans: rungs and kernels of every leg. None adapts both during the walk. The estimate of Z is unbiased only
            with plans from other particles and an adjusted kernel.
        until: ends the last leg where the mean of its increment reaches this value.
        limit: the highest position t, in (0, 1], at which the last leg ends.

    Raises:
        ValueError: an increment is NaN, or a leg needs more than `MAX_RUNGS` rungs.
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
        ancestors=torch.arange(num, device=z.device).expand(num_groups, -1),
    )
    for index, leg in enumerate(legs):
        is_last = index == len(legs) - 1
        _walk(
            leg,
            state,
            partial(noise, index),
            settings,
            plan=None if plans is None else plans[index],
            until=until if is_last else None,
            limit=limit if is_last else 1.0,
        )
    return state


def _walk(
    leg: Leg,
    state: Annealed,
    noise: Callable[[int], Noise],
    settings: Annealing,
    plan: WalkPlan | None,
    until: float | None,
    limit: float,
) -> None:
    """Walks one leg. Changes `state` to the state at its end."""
    t = torch.zeros(len(state.z), dtype=torch.float64, device=state.z.device)
    done = torch.zeros_like(t, dtype=torch.bool)
    forward, bridged = torch.zeros_like(t), torch.zeros_like(t)
    walked: list[WalkPlan] = []
    increment = _increment(leg, state.z)
    while not bool(done.all()):
        rung = len(walked)
        if rung == MAX_RUNGS:
            raise ValueError(f"a leg needs more than {MAX_RUNGS} rungs: its ends are too far apart for the particles")
        if plan is None:
            step, ends = _next_step(increment, state.log_weights, limit - t, settings.ess, until)
            scale = None
        else:
            step = plan.rungs[:, rung] - t
            ends = torch.full_like(done, rung == plan.rungs.shape[1] - 1)
            state.step_size, scale = plan.step_size[:, rung], plan.scale[:, rung]
        step = torch.where(done, 0.0, step)
        lower, lower_weights = _raised(step, increment), state.log_weights
        gain = (lower_weights + lower).logsumexp(dim=1)
        forward += gain
        state.log_weights = lower_weights + lower - gain[:, None]
        t = t + step
        draws = noise(rung)
        _resample(state, draws, settings.resample_below, ~done)
        scale = _spread(state) if scale is None else scale
        walked.append(WalkPlan(t[:, None], state.step_size[:, None], scale[:, None]))
        _move(leg, state, t, draws, settings.moves, scale, active=~done, adapts=plan is None)
        increment = _increment(leg, state.z)
        bridged += bennett_ratio(lower, lower_weights.exp(), _raised(step, increment), state.log_weights.exp(), gain)
        done = done | ends
    state.plans.append(WalkPlan(*(torch.cat(part, dim=1) for part in zip(*walked, strict=True))))
    state.log_z = torch.cat([state.log_z, forward[:, None]], dim=1)
    state.log_z_bridge = torch.cat([state.log_z_bridge, bridged[:, None]], dim=1)
    state.end = t


def _raised(step: Tensor, increment: Tensor) -> Tensor:
    """step (G,) times increment (G, N). A step of 0 gives 0 even where the increment is infinite."""
    return torch.where(step[:, None] == 0, 0.0, step[:, None] * increment)


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
    """The longest steps (G,) that keep the conditional effective sample size, and which groups end the leg (G,)."""
    step = largest_step(lambda s: conditional_ess(increment, log_weights, s) >= ess, room)
    if until is None:
        return step, step >= room
    stop = largest_step(lambda s: tilted_mean(increment, log_weights, s) <= until, room)
    stop = torch.where(tilted_mean(increment, log_weights, torch.zeros_like(room)) >= until, 0.0, stop)
    return torch.minimum(step, stop), (stop <= step) | (step >= room)


def _resample(state: Annealed, draws: Noise, threshold: float, active: Tensor) -> None:
    """Resamples the active groups whose effective sample size, as a fraction, is below the threshold."""
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
    state.ancestors = state.ancestors.gather(1, indices)
    state.log_weights = torch.where(uneven, -math.log(num), state.log_weights)


def _move(
    leg: Leg,
    state: Annealed,
    t: Tensor,
    draws: Noise,
    settings: MoveSettings,
    scale: Tensor,
    active: Tensor,
    adapts: bool,
) -> None:
    """Applies the kernel to the particles of the active groups, under the density of the rung."""
    num_groups, num, dim = state.z.shape
    rows = t.to(state.z.dtype).repeat_interleave(num)
    target = leg.target_at(rows)
    scales = scale.repeat_interleave(num, dim=0)
    chains = start(target, state.z.flatten(0, 1))
    moving, acceptance = active.repeat_interleave(num), torch.ones_like(t)
    for _ in range(settings.num_moves):
        steps = jittered(state.step_size.repeat_interleave(num), draws.uniform(), settings)
        moved, probability = move(chains, draws.normal(dim), draws.uniform(), target, steps, scales, settings)
        chains = chosen(moving, moved, chains)
        acceptance = probability.view(num_groups, num).mean(1).double()
        if adapts:
            state.step_size = torch.where(active, adapted(state.step_size, acceptance, settings), state.step_size)
    state.z = chains.z.view_as(state.z)
    state.acceptance.append(float(acceptance[active].mean()))


def _spread(state: Annealed) -> Tensor:
    """The particles' weighted standard deviation in every coordinate (G, Z)."""
    weights = state.log_weights.exp()[:, :, None].to(state.z.dtype)
    mean = (weights * state.z).sum(1, keepdim=True)
    return (weights * (state.z - mean).square()).sum(1).sqrt().clamp(min=1e-12)
