"""`fit_ratio` between Gaussians, whose ratio is known, from every kind of base; and its errors, one sentence each."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import ebmscale
from ebmscale.density.bases import SampledOnly
from ebmscale.density.prior import StandardNormal
from ebmscale.errors import ConfigError, DataError
from ebmscale.ratios import FitSettings, FittedRatio, StageRow, fit_ratio
from ebmscale.ratios.network import build_network
from ebmscale.ratios.watch import Watch
from ebmscale.seeds import torch_generator

QUICK = FitSettings(
    hidden=(), batch_size=256, rate=0.01, min_updates=50, max_updates=250, evidence_every=25, num_particles=1024,
    group_size=256,
)  # fmt: skip
SHIFT, SCALE = 1.0, 0.7
KL_A_COORDINATE = 0.5 * (SCALE**2 - 1 - 2 * math.log(SCALE) + SHIFT**2)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def narrow(*shape: int, seed: int = 1) -> torch.Tensor:
    """N(SHIFT, SCALE^2)."""
    return SHIFT + SCALE * normal(*shape, seed=seed)


def exact(x: torch.Tensor) -> torch.Tensor:
    """log of N(SHIFT, SCALE^2) over N(0, 1), over all coordinates."""
    return (0.5 * x.square() - 0.5 * ((x - SHIFT) / SCALE).square() - math.log(SCALE)).flatten(1).sum(1)


def check(fitted: FittedRatio, dim: int, tolerance: float) -> None:
    true = dim * KL_A_COORDINATE
    assert fitted.kl == pytest.approx(true, abs=4 * fitted.kl_error)
    assert fitted.kl_error < 0.15
    x = narrow(500, dim, seed=5)
    error = fitted.log_ratio(x) - exact(x)
    assert float(error.square().mean().sqrt()) < tolerance
    assert fitted.calibration.calibration_error < 0.06


@pytest.mark.parametrize("base", ["known", "gaussian", "samples"])
def test_two_gaussians(base: str) -> None:
    rows: list[StageRow] = []
    p = StandardNormal(2) if base == "known" else normal(6000, 2)
    base = "samples" if base == "known" else base
    fitted = fit_ratio(p, narrow(6000, 2), base=base, seed=1, progress=rows.append, settings=QUICK)
    check(fitted, 2, tolerance=0.3)
    assert fitted.num_stages == sum(row.gain > 0 for row in fitted.stages) >= 1
    assert rows[: len(fitted.stages)] == list(fitted.stages)  # those of p follow
    assert any("KL(q || p)" in line for line in fitted.lines())


def test_the_log_density_is_normalised_where_the_base_is_known() -> None:
    fitted = fit_ratio(StandardNormal(1), narrow(6000, 1), seed=1, settings=QUICK)
    x = torch.linspace(-4, 6, 2001)
    integral = float(fitted.log_density(x).exp().sum() * (x[1] - x[0]))
    assert integral == pytest.approx(1, abs=5 * fitted.normaliser.error + 0.01)
    of_samples = fit_ratio(normal(3000, 1), narrow(3000, 1), seed=1, settings=QUICK)
    assert isinstance(of_samples.sequence.base, SampledOnly)
    with pytest.raises(DataError, match="base density"):
        of_samples.log_density(x)


def test_a_wide_gap_is_crossed_in_stages() -> None:
    """N(0, 1) and N(12, 0.5^2) lie 72 nats apart, where a single classifier tells nothing but which is which."""
    q = 12 + 0.5 * normal(6000, 1)
    fitted = fit_ratio(StandardNormal(1), q, seed=1, settings=replace(QUICK, start="zero"))
    true = 0.5 * (0.25 - 1 + 2 * math.log(2) + 144)
    assert fitted.kl == pytest.approx(true, rel=0.03)
    assert fitted.stages[0].evidence.kl_bound < 0.5 * true


def test_many_dimensions_are_crossed_from_the_moments() -> None:
    """40 dimensions and 5 nats: 1,681 weights against 4,800 samples; from zero, a ratio is far weaker."""
    q = 0.4 + 0.8 * normal(6000, 40)
    true = 40 * 0.5 * (0.64 - 1 - 2 * math.log(0.8) + 0.16)
    found = fit_ratio(StandardNormal(40), q, seed=1, settings=QUICK)
    zero = fit_ratio(StandardNormal(40), q, seed=1, settings=replace(QUICK, start="zero", max_stages=1))
    assert found.kl == pytest.approx(true, rel=0.08)
    assert zero.stages[0].evidence.kl_bound < 0.9 * found.stages[0].evidence.kl_bound
    assert zero.stages[0].nats < found.stages[0].nats


def test_the_moments_are_believed_as_far_as_held_out_samples_bear() -> None:
    """p and q are one Gaussian, and Z is near N: the moments say what is not so."""
    fitted = fit_ratio(StandardNormal(30), normal(90, 30), seed=1, settings=replace(QUICK, max_stages=1))
    assert abs(fitted.kl) < 0.3


def test_equal_sides_have_no_ratio() -> None:
    fitted = fit_ratio(StandardNormal(2), normal(6000, 2), seed=1, settings=replace(QUICK, significance=3.0))
    assert abs(fitted.kl) < 0.01
    assert fitted.num_stages <= 1


def test_a_ratio_of_samples_alone_is_bounded_in_the_tail() -> None:
    """Gamma(3) is wider than the exponential, so the ratio of their moments' Gaussians grows with the square of x."""
    p = -torch.rand(6000, 1, generator=torch.Generator().manual_seed(0)).log()
    q = -torch.rand(6000, 3, generator=torch.Generator().manual_seed(1)).log().sum(1, keepdim=True)
    fitted = fit_ratio(p, q, base="samples", settings=QUICK)
    assert fitted.num_stages
    assert float(fitted.log_ratio(torch.tensor([[1000.0]]))) < 17 * fitted.num_stages


def test_images_are_told_apart_by_convolutions() -> None:
    p, q = normal(3000, 1, 4, 4), 0.3 + 0.8 * normal(3000, 1, 4, 4, seed=1)
    fitted = fit_ratio(p, q, base="samples", seed=1, settings=replace(QUICK, conv=(8,), max_stages=1, gain_limit=1.0))
    assert fitted.shape == (1, 4, 4)
    assert fitted.log_ratio(q).shape == (3000,)
    assert 0.7 < fitted.calibration.auc < 0.95


def test_the_same_seed_gives_the_same_ratio() -> None:
    quick = replace(QUICK, max_stages=1)
    same = [fit_ratio(StandardNormal(2), narrow(2000, 2), seed=seed, settings=quick).kl for seed in (3, 3, 4)]
    assert same[0] == same[1] != same[2]


def test_a_light_import_offers_it() -> None:
    fitted = ebmscale.fit_ratio(StandardNormal(1), narrow(500, 1).numpy(), settings=replace(QUICK, max_stages=1))
    assert isinstance(fitted, FittedRatio)


class Wide:
    """N(0, 4 I), as a user writes it."""

    dim = 2

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(0.0, 2.0).log_prob(z).sum(1)

    def from_noise(self, noise: torch.Tensor) -> torch.Tensor:
        return 2 * noise


def test_a_density_of_ones_own_needs_three_members() -> None:
    q = normal(2000, 2)
    fitted = fit_ratio(Wide(), q, seed=1, settings=replace(QUICK, max_stages=1))
    assert fitted.kl == pytest.approx(2 * (math.log(2) - 0.375), abs=4 * fitted.kl_error + 0.05)
    assert float((fitted.log_density(q) + 0.5 * q.square().sum(1) + math.log(2 * math.pi)).abs().mean()) < 0.1


def with_nan() -> np.ndarray:
    values = np.ones((50, 2))
    values[7, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("p", "q", "words"),
    [
        (np.ones((50, 3)), np.ones((50, 2)), "must be alike"),
        (StandardNormal(3), np.ones((50, 2)), "must be alike"),
        (np.ones((50, 2)), with_nan(), "the first is number 7"),
        (np.ones((30, 40)), np.ones((30, 40)), "more samples than coordinates"),
        (np.ones((5, 2)), np.ones((50, 2)), "at least 20"),
        ("words", np.ones((50, 2)), "not an array of numbers"),
        (np.ones((50, 2)), 3.0, "single number"),
        (normal(500, 1), 100 + normal(500, 1), "do not overlap"),
    ],
    ids=["shapes", "density", "nan", "few", "fewer", "words", "scalar", "disjoint"],
)
def test_bad_samples_get_a_sentence(p: Any, q: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        fit_ratio(p, q, base="samples", settings=QUICK)
    assert str(caught.value).endswith(".")


def test_a_gaussian_cannot_be_fitted_to_a_line() -> None:
    line = normal(100, 1).expand(-1, 2)
    with pytest.raises(DataError, match="fewer dimensions"):
        fit_ratio(line, line, base="gaussian", settings=QUICK)


def test_bad_settings_get_a_sentence() -> None:
    with pytest.raises(ConfigError, match="There is no base"):
        fit_ratio(normal(50, 1), normal(50, 1), base="uniform")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="min_updates"):
        FitSettings(min_updates=5000)
    with pytest.raises(ConfigError, match="start must be"):
        FitSettings(start="random")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="held_out"):
        FitSettings(held_out=1.5)
    fitted = fit_ratio(StandardNormal(1), narrow(100, 1), settings=replace(QUICK, max_stages=1))
    with pytest.raises(DataError, match="was fitted to"):
        fitted.log_ratio(np.ones((3, 2)))
    with pytest.raises(DataError, match="1 samples that are not finite"):
        fitted.log_ratio([[1.0], [math.nan]])


@pytest.mark.parametrize("seed", [0, 2])
def test_a_few_samples_of_p_in_the_tail_do_not_decide_log_z(seed: int) -> None:
    """Gamma(3) against Exponential(1): with seed 2 one of p's held-out samples has most of the weight."""
    generator = torch_generator(seed, "peers")
    p, parts = (-torch.rand(20_000, num, generator=generator).clamp(min=1e-12).log() for num in (1, 3))
    fitted = fit_ratio(p, parts.sum(1, keepdim=True), base="samples", seed=seed)
    low, high = fitted.interval
    true = 2 * (1.5 - 0.5772156649) - math.log(2)
    assert low <= true <= high
    assert fitted.kl == pytest.approx(true, rel=0.08)


@pytest.mark.parametrize("gaussian", [True, False])
def test_where_few_samples_of_p_reach_q_the_base_with_the_smaller_loss_is_taken(gaussian: bool) -> None:
    """Four narrow Gaussians against N(0, I), which is the base itself, and Gamma(4) against Exponential(1)."""
    settings = FitSettings(
        hidden=(64,),
        waves=32 if gaussian else 0,
        min_updates=100,
        max_updates=400,
        max_stages=3,
        num_particles=1024,
        groups=4,
    )
    if gaussian:
        p, q = normal(10_000, 2), 0.15 * normal(10_000, 2, seed=1)
        q = q + 1.5 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).repeat(2500, 1)
    else:
        uniform = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0)).clamp(min=1e-12)
        p, q = -uniform[:, :1].log(), -uniform[:, 1:].log().sum(1, keepdim=True)
    said: list[str] = []
    fitted = fit_ratio(p, q, settings=settings, watch=Watch(say=said.append))
    assert any("through a Gaussian is tried" in text for text in said)
    assert (fitted.reference is not None) == gaussian
    assert any("the Gaussian with p's moments" in line for line in fitted.lines()) == gaussian


@pytest.mark.parametrize("base", ["samples", "gaussian"])
def test_samples_that_are_given_several_times_come_with_a_warning(base: Any) -> None:
    p, q = normal(400, 2), narrow(400, 2)
    assert "equal to samples" not in str(fit_ratio(p, q, base=base, settings=QUICK).warning)
    for of_p, of_q in ((p.repeat(3, 1), q), (p, q.repeat(3, 1))):
        fitted = fit_ratio(of_p, of_q, base=base, settings=QUICK)
        assert fitted.repeated > 0.9
        assert "give each only once" in str(fitted.warning)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden": (0,)}, "a width in hidden"),
        ({"hidden": (8.5,)}, "a width in hidden"),
        ({"hidden": 8}, "must hold widths"),
        ({"hidden": (2**40,)}, "must be below"),
        ({"waves": 2**40}, "must be below"),
        ({"conv": (-1,)}, "a width in conv"),
        ({"waves": 1.5}, "waves must be a whole number from 0"),
        ({"max_stages": "3"}, "max_stages must be a whole number from 1"),
        ({"groups": 0}, "groups"),
        ({"rate": -1.0}, "rate must be a number"),
        ({"significance": math.nan}, "significance"),
        ({"gain_limit": 0}, "gain_limit"),
        ({"ess": 1.5}, "ess"),
        ({"budget_s": None}, "budget_s"),
        ({"moves": "hmc"}, "moves"),
    ],
)
def test_a_setting_of_another_type_or_range_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FitSettings(**values)


def test_settings_are_no_dictionary() -> None:
    with pytest.raises(ConfigError, match="FitSettings"):
        fit_ratio(normal(50, 1), narrow(50, 1), settings={"max_stages": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [FitSettings(hidden=(10**9, 10**9)), FitSettings(waves=10**9)])
def test_a_network_that_no_memory_holds_is_refused_before_it_is_made(settings: FitSettings) -> None:
    with pytest.raises(ConfigError, match=r"needs [0-9,.]+ GB of memory.* lower hidden, waves or conv"):
        build_network((2,), settings)
