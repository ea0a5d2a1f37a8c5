"""A learned sigma: the closed form, its restart, and what a run makes of it."""

import math

import pytest
import torch

from ebmscale.config import RunConfig
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.evaluate.likelihood import likelihood
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.noise_level import HALF_LIFE, LEAST, START, NoiseLevel, learned_sigma
from ebmscale.model.posterior import log_likelihood
from tests.training.test_resume import changed

CPU = torch.device("cpu")


def test_it_is_the_root_of_an_exponential_mean_of_squared_residuals() -> None:
    level = NoiseLevel("auto", CPU)
    assert float(level.value) == START
    level.observe(0.04, 32)
    assert float(level.value) == pytest.approx(0.2)
    level.observe(0.16, HALF_LIFE)
    assert float(level.value) == pytest.approx(math.sqrt(0.10))
    level.observe(math.nan, 32)
    assert float(level.value) == pytest.approx(math.sqrt(0.10))
    assert level.mean_square == pytest.approx(0.10)


def test_it_does_not_depend_on_how_samples_are_split_into_batches() -> None:
    one, other = NoiseLevel("auto", CPU), NoiseLevel("auto", CPU)
    for level, count in ((one, 1), (other, 4)):
        level.observe(0.2, 32)
        for _ in range(count):
            level.observe(0.05, 256 // count)
    assert float(one.value) == pytest.approx(float(other.value))


def test_it_changes_in_place_and_restarts_from_what_was_saved() -> None:
    level = NoiseLevel("auto", CPU)
    value = level.value
    level.observe(0.09, 32)
    assert level.value is value
    other = NoiseLevel("auto", CPU)
    other.restore(level.mean_square)
    for one in (level, other):
        one.observe(0.01, 64)
    assert torch.equal(torch.as_tensor(level.value), torch.as_tensor(other.value))
    other.restore(None)
    assert float(other.value) == START


def test_it_stays_above_a_bound() -> None:
    assert learned_sigma(0.0) == LEAST


def test_a_fixed_one_stays_the_number_that_it_is() -> None:
    level = NoiseLevel(0.3, CPU)
    level.observe(0.01, 10_000)
    assert (level.value, level.mean_square) == (0.3, None)


def test_a_tensor_and_a_number_give_the_same_likelihood() -> None:
    x, mean = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(log_likelihood(x, mean, torch.tensor(0.2)), log_likelihood(x, mean, 0.2))


def test_it_needs_a_generator_that_trains(tiny: RunConfig) -> None:
    with pytest.raises(ValueError, match="learned while a generator trains"):
        changed(tiny, model={"sigma": "auto", "generator": {"train": False}})


def test_scores_and_likelihood_of_a_model_use_it(tiny: RunConfig) -> None:
    def model_of(config: RunConfig, mean_square: float | None) -> LatentModel:
        prior = RatioSequence(StandardNormal(4), build_ratio_network(config))
        networks = build_model(config, (1, 8, 8)).requires_grad_(False)
        return LatentModel(config, networks, prior, (1, 8, 8), 0, mean_square=mean_square)

    learned = model_of(changed(tiny, model={"sigma": "auto"}), 0.04)
    given = model_of(changed(tiny, model={"sigma": 0.2}), None)
    x = torch.zeros(2, 1, 8, 8)
    assert learned.sigma == given.sigma
    assert torch.equal(learned.score(x).joint, given.score(x).joint)
    assert likelihood(learned, x, num_particles=8).figures == likelihood(given, x, num_particles=8).figures
