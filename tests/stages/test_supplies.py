"""Supplies of negatives against closed forms, for one worker and for several."""

import math

import pytest
import torch

from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.stages.draws import Draws
from ebmscale.stages.from_samples import WeightedSamples
from ebmscale.stages.pools import Pool
from ebmscale.stages.supplies import ExactDraws, WeightedDraws, choose, total
from tests.stages.known import SLOPES, check_moments, linear, prior_of, tilted


def test_exact_draws_have_the_base_as_their_density() -> None:
    supply = ExactDraws(tilted(0).base, Draws(0), "a")
    drawn = supply.draw(20_000, 3)
    check_moments(drawn.z, drawn.weights, 0)
    assert torch.equal(supply.used(50, 2).z, torch.cat([supply.draw(50, 0).z, supply.draw(50, 1).z]))
    assert not torch.equal(drawn.z, supply.fresh(20_000, 3).z)


@pytest.mark.parametrize("candidates", [1, 3, 10])
def test_weighted_draws_are_unbiased_for_any_number_of_candidates(candidates: int) -> None:
    log_z, _, _ = prior_of(2)
    drawn = WeightedDraws(tilted(2), log_z, candidates, Draws(1), "a").draw(20_000, 0)
    check_moments(drawn.z, drawn.weights, 2)
    error = float(drawn.weights.std()) / math.sqrt(20_000)
    assert float(drawn.weights.mean()) == pytest.approx(1, abs=4.5 * error)
    assert error < 0.01 / math.sqrt(candidates)


def test_the_choice_among_candidates_is_exactly_unbiased() -> None:
    """Summed over all uniform draws: the mean of weight times h is the mean of w h over the candidates."""
    log_weights = torch.tensor([[0.3, -1.0, 1.2]]).double()
    h = torch.tensor([2.0, -5.0, 0.7]).double()
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    chosen, log_mean = choose(log_weights.expand(len(uniform), -1), uniform)
    found = float((log_mean.exp() * h[chosen]).mean())
    assert found == pytest.approx(float((log_weights[0].exp() * h).mean()), abs=1e-4)


def test_pools_keep_the_density_and_no_negative_is_used_more_often_than_stated() -> None:
    log_z, _, _ = prior_of(2)
    particles = WeightedDraws(tilted(2), log_z, 30, Draws(2), "start").fresh(4096, 0)
    places = torch.multinomial(particles.weights, 4096, replacement=True, generator=torch.Generator().manual_seed(0))
    step = torch.full((2,), 3.0)  # so long that most moves are refused at first
    pool = Pool(tilted(2), particles.z[places], step, particles.z, 3, Draws(3), "a")
    seen: list[torch.Tensor] = []
    counts: dict[tuple[float, ...], int] = {}
    for position in range(64):
        drawn = pool.draw(512, position)
        assert int(pool.uses.max()) <= 3
        seen.append(drawn.z)
    # of one of the 4096 particles, all positions in order; copies of one particle count as one another's uses no more
    rounds = torch.cat(seen).view(8, 4096, 2)
    for particle in range(4096):
        stood = 1
        for before, now in zip(rounds[:-1, particle], rounds[1:, particle], strict=True):
            stood = stood + 1 if torch.equal(before, now) else 1
            counts[tuple(now.tolist())] = max(stood, counts.get(tuple(now.tolist()), 0))
    assert max(counts.values()) <= 3
    check_moments(torch.cat(seen[-16:]), torch.ones(16 * 512), 2, inflated=2.0)


def test_weighted_samples_have_the_density_of_the_tilted_prior() -> None:
    z = ExactDraws(tilted(0).base, Draws(4), "a").draw(60_000, 0).z
    f = (z @ SLOPES.sum(0)).double()
    supply = WeightedSamples(z[:50_000], f[:50_000], z[50_000:], f[50_000:], Draws(5), "a")
    drawn, fresh = supply.draw(20_000, 0), supply.fresh(10, 0)
    check_moments(drawn.z, drawn.weights, 2, inflated=1.5)
    check_moments(fresh.z, fresh.weights, 2, inflated=1.5)
    assert not set(map(tuple, fresh.z.tolist())) & set(map(tuple, drawn.z.tolist()))


def test_the_number_of_workers_changes_no_weighted_negative() -> None:
    sequence = RatioSequence(StandardNormal(2), linear(SLOPES[0])).append(linear(SLOPES[1]).state_dict())
    alone = WeightedDraws(sequence, 0.1, 6, Draws(7, num_streams=8), "a").draw(64, 5)
    rows = torch.arange(64)
    for size in (2, 4, 8):
        for rank in range(size):
            part = WeightedDraws(sequence, 0.1, 6, Draws(7, 8, rank, size), "a").draw(64, 5)
            own = rows[rows % 8 % size == rank]
            torch.testing.assert_close(part.z, alone.z[own])
            torch.testing.assert_close(part.weights, alone.weights[own])


def test_totals_are_sums_of_the_ratios() -> None:
    z = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(total(tilted(2), z), z @ SLOPES.sum(0), rtol=1e-4, atol=1e-4)
    assert not total(tilted(0), z).any()
