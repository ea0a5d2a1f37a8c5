"""The score in closed form equals that of autograd, in float64, for every activation, depth and number of stages."""

import math

import pytest
import torch
from torch import Tensor, nn

from ebmscale.density import path
from ebmscale.density.bases import MomentBase
from ebmscale.density.langevin import LangevinSettings, run_chain, start
from ebmscale.density.mixture import Mixture
from ebmscale.density.prior import Base, RatioSequence, StandardNormal
from ebmscale.kernels import prior_chain
from ebmscale.kernels.closed_form import ROWS_AT_ONCE, closed_form_sum, closed_form_target, last_leg, stage_legs
from ebmscale.kernels.prior_chain import prior_target, run_prior_chain
from ebmscale.kernels.quadratics import merged
from ebmscale.networks import ACTIVATIONS, QuadraticHead, RatioNet, Standardised, vector_ratio

DIM = 5


class WideNormal(Base):
    """N(0, 4 I): a base density that needs autograd in the closed form."""

    dim = DIM

    def log_density(self, z: Tensor) -> Tensor:
        return -z.square().sum(1) / 8 - DIM * math.log(2)

    def from_noise(self, noise: Tensor) -> Tensor:
        return 2 * noise


def make_prior(
    num_stages: int, hidden: tuple[int, ...] = (7, 6), activation: str = "silu", base=None, squares: bool = False
) -> RatioSequence:
    network = RatioNet(DIM, hidden, activation, squares=squares).double()
    generator = torch.Generator().manual_seed(num_stages)
    prior = RatioSequence(base or StandardNormal(DIM), network)
    for _ in range(num_stages):
        shapes = {name: weight.shape for name, weight in network.state_dict().items()}
        prior = prior.append({n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()})
    return prior


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(7,), (7, 6), (3, 8, 4)])
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("squares", [False, True])
def test_density_and_score_are_autograds(
    activation: str, hidden: tuple[int, ...], num_stages: int, squares: bool
) -> None:
    prior = make_prior(num_stages, hidden, activation, squares=squares)
    target = closed_form_target(prior)
    assert target is not None
    for z in (normal(9, DIM), normal(1, DIM), normal(DIM, 4).T, normal(8, 2 * DIM)[::2, ::2]):
        for got, wanted in zip(target(z), prior.evaluate(z), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
            assert not got.requires_grad


@pytest.mark.parametrize("num_stages", [1, 6])
@pytest.mark.parametrize("hidden", [(7,), (100, 100)])
def test_bf16_networks_leave_latents_and_sums_in_fp32(hidden: tuple[int, ...], num_stages: int) -> None:
    prior = make_prior(num_stages, hidden)
    scaled = {name: 0.1 * weight.float() for name, weight in prior.weights.items()}
    prior = RatioSequence(prior.base, prior.network.float(), scaled)
    target = closed_form_target(prior, torch.bfloat16)
    assert target is not None
    for z in (normal(300, DIM).float(), normal(1, DIM).float()):
        (log_density, score), (wanted, wanted_score) = target(z), prior.evaluate(z)
        assert log_density.dtype == score.dtype == torch.float32
        base = prior.base.log_density(z)
        assert (log_density - wanted).norm() < 0.02 * (wanted - base).norm()
        assert (score - wanted_score).norm() < 0.02 * (wanted_score + z).norm()


def moment_base(num_components: int = 1) -> MomentBase:
    samples = normal(200, DIM) @ normal(DIM, DIM, seed=1) + 2
    inside = Mixture.fitted(normal(200, DIM, seed=2), num_components) if num_components > 1 else None
    return MomentBase(samples.mean(0), torch.linalg.cholesky(torch.cov(samples.T)), inside)


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("num_components", [1, 3])
def test_on_a_base_with_coordinates_density_and_score_are_autograds(squares: bool, num_components: int) -> None:
    prior, z = make_prior(3, base=moment_base(num_components), squares=squares), normal(9, DIM)
    for got, wanted in zip(prior_target(prior)(z), prior.evaluate(z), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_chains_on_a_base_with_coordinates_are_preconditioned_by_its_covariance() -> None:
    prior, z, noise = make_prior(2, base=moment_base()), normal(9, DIM), normal(9, 1, DIM, seed=3)
    ends, _ = run_prior_chain(prior, z, noise, LangevinSettings(1, 0.3))
    factor = prior.base.cholesky
    wanted = z + 0.045 * prior.score(z) @ (factor @ factor.T) + 0.3 * noise[:, 0] @ factor.T
    torch.testing.assert_close(ends, wanted)


def test_another_base_is_differentiated() -> None:
    prior = make_prior(2, base=WideNormal())
    target = closed_form_target(prior)
    assert target is not None
    z = normal(6, DIM)
    for got, wanted in zip(target(z), prior.evaluate(z), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_stages", [0, 1, 4])
@pytest.mark.parametrize("num_steps", [0, 1, 6])
def test_a_chain_is_run_chains(num_stages: int, num_steps: int) -> None:
    prior, settings = make_prior(num_stages), LangevinSettings(num_steps, 0.3, noise_scale=0.7, temperature=1.3)
    z, noise = normal(4, DIM, seed=1), normal(4, num_steps, DIM, seed=2)
    got, trace = run_prior_chain(prior, z, noise, settings)
    end, wanted = run_chain(prior.evaluate, start(prior.evaluate, z), noise, settings, evaluate_end=False)
    torch.testing.assert_close(got, end.z, rtol=1e-10, atol=1e-10)
    for own, other in zip(trace, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


class OtherNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight).sin()


def test_networks_that_are_not_known_go_by_autograd_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    prior = RatioSequence(StandardNormal(DIM), OtherNet()).append({"weight": normal(DIM)})
    assert closed_form_target(prior) is None
    prior_chain._log_choice.cache_clear()
    settings = LangevinSettings(3, 0.3)
    z, noise = normal(4, DIM), normal(4, 3, DIM, seed=2)
    with caplog.at_level("INFO", logger="ebmscale"):
        got, _ = run_prior_chain(prior, z, noise, settings)
        run_prior_chain(prior, z, noise, settings)
    assert torch.equal(got, run_chain(prior.evaluate, start(prior.evaluate, z), noise, settings)[0].z)
    assert caplog.text.count("no closed form") == 1


def test_a_network_derived_from_the_known_one_is_not_taken_for_it() -> None:
    class Doubled(RatioNet):
        def forward(self, z: Tensor) -> Tensor:
            return 2 * super().forward(z)

    network = Doubled(DIM, (4,)).double()
    prior = RatioSequence(StandardNormal(DIM), network).append(network.state_dict())
    assert closed_form_target(prior) is None


def make_stage_prior(
    num_stages: int, quadratic: bool, bounded: bool, base=None, has_powers: bool = False
) -> RatioSequence:
    """Stages as `stages` learns them: standardised inputs, a gain, a bounded perceptron, a quadratic head, a power."""
    network = Standardised(vector_ratio(DIM, (7, 6), "silu", quadratic, squares=True, bounded=bounded), DIM).double()
    prior = RatioSequence(base or StandardNormal(DIM), network)
    generator = torch.Generator().manual_seed(num_stages)
    for stage in range(num_stages):
        weights = {
            name: torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            for name, weight in network.state_dict().items()
        }
        weights |= {"scale": 1 + weights["scale"].square(), "gain": torch.tensor(0.5 + stage, dtype=torch.float64)}
        weights |= {name: torch.full_like(one, 2.0 + stage) for name, one in weights.items() if name.endswith("bound")}
        prior = prior.append(weights, 1.3 - 0.2 * stage if has_powers else 1.0)
    return prior


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("has_powers", [False, True])
def test_stages_with_gains_bounds_and_quadratic_heads_are_autograds(
    num_stages: int, quadratic: bool, bounded: bool, has_powers: bool
) -> None:
    prior = make_stage_prior(num_stages, quadratic, bounded, has_powers=has_powers)
    target = closed_form_target(prior)
    assert target is not None
    z = normal(ROWS_AT_ONCE + 9, DIM)
    for got, wanted in zip(target(z), prior.evaluate(z), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # torch's softplus is linear beyond 20


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("has_powers", [False, True])
def test_rungs_between_two_stages_are_autograds(num_stages: int, quadratic: bool, has_powers: bool) -> None:
    prior = make_stage_prior(num_stages, quadratic, bounded=True, has_powers=has_powers)
    leg = last_leg(prior)
    assert leg.rung is not None
    z, t = normal(ROWS_AT_ONCE + 9, DIM), normal(ROWS_AT_ONCE + 9, 1, seed=1)[:, 0].abs()
    before = prior.prefix(num_stages - 1)
    definition = path.Leg(before.log_density, lambda z: prior.log_density(z) - before.log_density(z))
    torch.testing.assert_close(leg.increment(z), definition.increment(z), rtol=1e-6, atol=1e-6)
    for got, wanted in zip(leg.target_at(t)(z), definition.target_at(t)(z), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # torch's softplus is linear beyond 20


@pytest.mark.parametrize("num_components", [1, 3])
@pytest.mark.parametrize("quadratic", [False, True])
def test_powers_on_a_base_with_coordinates(num_components: int, quadratic: bool) -> None:
    """The weights and log Z are those of the coordinates; the legs of both definitions are the same."""
    prior = make_stage_prior(3, quadratic, True, moment_base(num_components), has_powers=True)
    z, inside = normal(9, DIM), prior.in_coordinates()
    close = {"rtol": 1e-6, "atol": 1e-6}
    for got, wanted in zip(prior_target(prior)(z), prior.evaluate(z), strict=True):
        torch.testing.assert_close(got, wanted, **close)
    total = closed_form_sum(prior)
    assert total is not None
    torch.testing.assert_close(total(z), prior.log_weight(z), **close)
    torch.testing.assert_close(inside.log_weight(prior.coordinates(z)), prior.log_weight(z), **close)
    for one, other in zip(path.stage_legs(inside), stage_legs(inside), strict=True):
        torch.testing.assert_close(one.increment(z), other.increment(z), **close)
        torch.testing.assert_close(one.log_density(z), other.log_density(z), **close)


def test_quadratic_stages_with_powers_are_one() -> None:
    network = Standardised(QuadraticHead(DIM), DIM).double()
    prior = RatioSequence(StandardNormal(DIM), network)
    for stage in range(3):
        weights = {name: 0.1 * normal(1, *one.shape, seed=stage)[0] for name, one in network.state_dict().items()}
        prior = prior.append({**weights, "scale": 1 + weights["scale"].square()}, 0.9 + 0.2 * stage)
    one, z = merged(prior), normal(9, DIM)
    assert one.num_stages == 1
    torch.testing.assert_close(one.log_density(z), prior.log_density(z))


@pytest.mark.parametrize("zeros", [[0], [1, 2], [2], [0, 1, 2]])
def test_stages_whose_perceptron_is_zero_cost_nothing_and_change_nothing(zeros: list[int]) -> None:
    prior = make_stage_prior(3, True, True)
    weights = {name: one.clone() for name, one in prior.weights.items()}
    for name, one in weights.items():
        if name.startswith("inner.parts.1.inner.layers.4"):
            one[zeros] = 0
    prior = RatioSequence(prior.base, prior.network, weights)
    z, t = normal(50, DIM), normal(50, 1, seed=1)[:, 0].abs()
    target, total = closed_form_target(prior), closed_form_sum(prior)
    assert target is not None
    assert total is not None
    definition = path.Leg(prior.prefix(2).log_density, lambda z: prior.log_ratios(z)[-1])
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(total(z), prior.log_ratios(z).sum(0), **close)
    for got, wanted in zip(target(z), prior.evaluate(z), strict=True):
        torch.testing.assert_close(got, wanted, **close)
    for got, wanted in zip(last_leg(prior).target_at(t)(z), definition.target_at(t)(z), strict=True):
        torch.testing.assert_close(got, wanted, **close)


def test_a_fitted_base_and_unknown_networks_have_no_rung_in_closed_form() -> None:
    assert last_leg(make_stage_prior(2, True, True, moment_base())).rung is None
    network = Standardised(vector_ratio(DIM, (7,), "silu", True, num_waves=3), DIM)
    assert last_leg(RatioSequence(StandardNormal(DIM), network).append(network.state_dict())).rung is None
