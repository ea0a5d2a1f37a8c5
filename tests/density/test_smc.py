"""Sequential Monte Carlo and annealed importance sampling against Gaussians, whose normalisers are known; in float64.

The path goes from N(0, I) to N(0, I) exp(-a |z - m|^2 / 2): a product of Gaussians, with
log Z = -(d/2) log(1 + a) - (a / (1 + a)) |m|^2 / 2, mean a m / (1 + a) and variance 1 / (1 + a).
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ebmscale.density.estimates import pooled
from ebmscale.density.moves import MoveSettings, Noise
from ebmscale.density.path import Annealed, Annealing, Leg, stage_legs
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.density.smc import anneal
from ebmscale.seeds import StreamNoise
from tests.density.draws import GeneratorNoise

SHARPNESS, MEAN = 3.0, torch.tensor([1.5, 0.0, -1.0], dtype=torch.float64)
DIM = len(MEAN)
LOG_Z = -0.5 * DIM * math.log(1 + SHARPNESS) - 0.5 * SHARPNESS / (1 + SHARPNESS) * float(MEAN.square().sum())
BASE = StandardNormal(DIM)
LEG = Leg(BASE.log_density, lambda z: -0.5 * SHARPNESS * (z - MEAN).square().sum(1))


def particles(groups: int, num: int, seed: int = 0) -> tuple[Tensor, Callable[[int, int], Noise]]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(groups, num, DIM, generator=generator, dtype=torch.float64)
    noise = GeneratorNoise(generator, groups * num, torch.float64)
    return z, lambda leg, rung: noise


def weighted_mean(walked: Annealed, values: Tensor) -> Tensor:
    return (walked.log_weights.exp()[:, :, None] * values).sum(1).mean(0)


@pytest.mark.parametrize("kind", ["mala", "hmc"])
@pytest.mark.parametrize("resample_below", [0.0, 0.5, 1.0], ids=["ais", "smc", "always"])
def test_the_normaliser_of_a_product_of_gaussians(kind: str, resample_below: float) -> None:
    z, noise = particles(16, 500)
    settings = Annealing(resample_below=resample_below, moves=MoveSettings(kind))
    walked = anneal([LEG], z, noise, settings)
    log_z, error = pooled(walked.log_z.sum(1))
    assert error < 0.05
    assert log_z == pytest.approx(LOG_Z, abs=4 * error)
    bridge, bridge_error = pooled(walked.log_z_bridge.sum(1))
    assert bridge == pytest.approx(LOG_Z, abs=4 * bridge_error)
    assert walked.num_rungs > 1
    mean = SHARPNESS / (1 + SHARPNESS) * MEAN
    torch.testing.assert_close(weighted_mean(walked, walked.z), mean, rtol=0, atol=0.06)
    variance = weighted_mean(walked, (walked.z - mean).square())
    torch.testing.assert_close(variance, torch.full((DIM,), 1 / (1 + SHARPNESS)).double(), rtol=0, atol=0.04)


def test_langevin_moves_come_close() -> None:
    """Without an accept-reject step the estimate has a bias, which is small for a small step."""
    z, noise = particles(16, 500)
    walked = anneal([LEG], z, noise, Annealing(moves=MoveSettings("langevin", num_moves=5, step_size=0.2)))
    assert pooled(walked.log_z.sum(1))[0] == pytest.approx(LOG_Z, abs=0.1)


def test_annealed_importance_sampling_is_unbiased() -> None:
    """With a plan from other particles, the mean of the estimates is Z, even with four particles each."""
    settings = Annealing(ess=0.5, resample_below=0.0, moves=MoveSettings("mala", num_moves=1))
    z, noise = particles(1, 200)
    plans = [plan._replace(**{name: part.expand(6000, *part.shape[1:]) for name, part in plan._asdict().items()})
             for plan in anneal([LEG], z, noise, settings).plans]  # fmt: skip
    z, noise = particles(6000, 4, seed=1)
    walked = anneal([LEG], z, noise, settings, plans=plans)
    ratio = torch.exp(walked.log_z.sum(1) - LOG_Z)
    error = float(ratio.std() / math.sqrt(len(ratio)))
    assert error < 0.02
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * error)
    assert float(walked.log_z.sum(1).mean()) < LOG_Z - 0.1  # the logarithm is a lower bound, and a loose one here


def test_walking_down_gives_the_other_sign() -> None:
    """From exact samples of the end, the reversed leg estimates -log Z: together a bound from both sides."""
    z, noise = particles(16, 500)
    exact = SHARPNESS / (1 + SHARPNESS) * MEAN + z / math.sqrt(1 + SHARPNESS)
    plans = [plan.reversed() for plan in anneal([LEG], z, noise, Annealing()).plans]
    for walked in (
        anneal([LEG.reversed()], exact, noise, Annealing()),
        anneal([LEG.reversed()], exact, noise, Annealing(), plans=plans),
    ):
        log_z, error = pooled(walked.log_z.sum(1))
        assert log_z == pytest.approx(-LOG_Z, abs=4 * error)
        assert bool((walked.end == 1).all())


class Quadratic(nn.Module):
    """b - a |z - m|^2 / 2, the increment of the path above."""

    def __init__(self, sharpness: float, constant: float):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness, dtype=torch.float64))
        self.constant = nn.Parameter(torch.tensor(constant, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return self.constant - 0.5 * self.sharpness * (z - MEAN).square().sum(-1)


def test_the_stages_of_a_sequence_are_the_path() -> None:
    """Two stages of sharpness 1 and 2 are one of 3; log Z of every stage is that of its own Gaussian."""
    prior = RatioSequence(BASE, Quadratic(0.0, 0.0))
    for sharpness, constant in ((1.0, 0.7), (2.0, -0.2)):
        prior = prior.append(Quadratic(sharpness, constant).state_dict())
    z, noise = particles(16, 500)
    walked = anneal(stage_legs(prior), z, noise, Annealing())
    first = -0.5 * DIM * math.log(2) - 0.25 * float(MEAN.square().sum()) + 0.7
    for legs, expected in ((walked.log_z[:, :1], first), (walked.log_z, LOG_Z + 0.5)):
        log_z, error = pooled(legs.sum(1))
        assert log_z == pytest.approx(expected, abs=4 * error)
    assert len(walked.plans) == 2


def test_groups_know_nothing_of_each_other() -> None:
    """Four groups on one worker are two groups on each of two: the noise belongs to the group."""

    def walk(streams: list[int]) -> Annealed:
        rows = torch.tensor(streams).repeat_interleave(64)
        z = StreamNoise(5, "start", 0, rows).normal(DIM).double().view(len(streams), 64, DIM)
        return anneal([LEG], z, lambda leg, rung: StreamNoise(5, f"leg-{leg}", rung, rows), Annealing(ess=0.9))

    whole, parts = walk([0, 1, 2, 3]), [walk([0, 1]), walk([2, 3])]
    for name in ("z", "log_weights", "log_z", "log_z_bridge", "step_size"):
        expected = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(getattr(whole, name), expected)


def test_a_walk_stops_where_the_mean_is_reached() -> None:
    """N(0, 1) e^(c z) = N(c, 1), so the mean of the increment z is c."""
    leg = Leg(BASE.log_density, lambda z: z[:, 0])
    z, noise = particles(1, 20_000)
    walked = anneal([leg], z, noise, Annealing(), until=2.5, limit=10)
    assert float(walked.end) == pytest.approx(2.5, abs=0.1)
    assert float(anneal([leg], z, noise, Annealing(), until=-0.5, limit=10).end) == 0
    assert float(anneal([leg], z, noise, Annealing(), until=1e9, limit=1.5).end) == 1.5


def test_steeper_paths_get_more_rungs() -> None:
    z, noise = particles(2, 400)
    numbers = [
        anneal([Leg(BASE.log_density, lambda z, a=a: -0.5 * a * z.square().sum(1))], z, noise, Annealing()).num_rungs
        for a in (0.0, 10.0, 1e4)
    ]
    assert numbers[0] == 1
    assert numbers == sorted(set(numbers))


def test_a_plan_is_walked_as_it_is() -> None:
    z, noise = particles(3, 200)
    walked = anneal([LEG], z, noise, Annealing(ess=0.9))
    again = anneal([LEG], z, noise, Annealing(ess=0.9), plans=walked.plans)
    for name in ("rungs", "step_size", "scale"):
        torch.testing.assert_close(getattr(again.plans[0], name), getattr(walked.plans[0], name))
    assert bool((walked.end == 1).all())


def test_a_weight_of_zero_is_allowed() -> None:
    """A half-space: P(z_0 > 0) = 1/2."""
    z, noise = particles(8, 500)
    leg = Leg(BASE.log_density, lambda z: torch.where(z[:, 0] > 0, 0.0, -math.inf))
    walked = anneal([leg], z, noise, Annealing(ess=0.1))
    log_z, error = pooled(walked.log_z.sum(1))
    assert log_z == pytest.approx(math.log(0.5), abs=4 * error)
    assert bool((walked.log_weights[walked.z[..., 0] <= 0] == -math.inf).all())


def test_what_is_not_a_number_is_refused() -> None:
    z, noise = particles(1, 10)
    with pytest.raises(ValueError, match="not a number"):
        anneal([Leg(BASE.log_density, lambda z: z[:, 0] * math.nan)], z, noise, Annealing())
