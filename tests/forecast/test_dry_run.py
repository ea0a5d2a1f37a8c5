"""What a dry run takes for granted about the stages of the run that it forecasts."""

from dataclasses import replace
from pathlib import Path

import pytest

from ebmscale.address import Address
from ebmscale.config import RunConfig, load_config
from ebmscale.errors import ConfigError
from ebmscale.forecast.dry_run import Costs, _age, dry_run
from ebmscale.forecast.rehearsal import GAP, go_to_stage, rehearsal, try_freeze
from ebmscale.model.run_folder import run_storage
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.world import World

ROOT = Path(__file__).parents[2]


def digits(**settings: object) -> RunConfig:
    given = {"stages.max_stages": 5, "stages.max_samples": 10_000, "stages.settle_samples": 2_000} | settings
    given |= {"train.batch_size": 100, "train.max_samples": 100_000}
    return load_config(ROOT / "configs" / "digits.yaml", [f"{key}={value}" for key, value in given.items()])


def test_the_last_of_the_stages_lasts_to_the_end() -> None:
    config = digits(**{"stages.start_samples": 20_000})
    assert _age(config, 0, 20_000) == 0
    # Four stages of 10,000 samples have 0, 1, 2 and 3 of the 4 ratios below them; the fifth has all, for 40,000.
    assert _age(config, 20_000, 100_000) == pytest.approx((0 + 1 + 2 + 3 + 4 * 4) / 8 / 4)


@pytest.mark.parametrize("settings", [{"method": "lebm"}, {"method": "nce"}, {"stages.max_stages": 1}])
def test_a_prior_that_does_not_grow_costs_what_it_costs(settings: dict[str, object]) -> None:
    assert _age(digits(**settings), 0, 100_000) == 1


def test_a_run_of_any_length_costs_what_its_parts_cost() -> None:
    """Five stages of 10,000 samples after 20,000 without ratios; updates of 100, evidence every 2,500."""
    config = digits(**{"stages.start_samples": 20_000, "stages.evidence_every": 2_500})
    costs = Costs(config, (0, 20_000), (1.0, 2.0), (1.0, 6.0), 10.0, 50.0, 5.0)
    assert costs.cpu_s(10_000) == pytest.approx(100 * 1.0 + 4 * 10.0)
    # Two stages begin, of 0 and 1 ratios of the 4 that the last has; a third of the time each without and with one.
    updates, evidence = 200 * 1.0 + 100 * 2.0 + 100 * 3.0, 16 * (10.0 + 40.0 / 4 / 4)
    assert costs.cpu_s(40_000) == pytest.approx(updates + evidence + 5.0 * (1 + 2))
    with_base = replace(costs, base=7.0)
    assert with_base.cpu_s(20_000) == costs.cpu_s(20_000)
    assert with_base.cpu_s(40_000) == pytest.approx(costs.cpu_s(40_000) + 7.0)
    for samples in (100, 20_000, 40_000, 90_000, 500_000):
        assert costs.samples_within(costs.cpu_s(samples)) == samples
    assert costs.samples_within(0.1) == 100


def test_a_live_prior_costs_the_same_from_its_start_to_the_end() -> None:
    config = digits(**{"method": "lebm", "stages.start_samples": 20_000, "stages.evidence_every": 10_000})
    costs = Costs(config, (0, 20_000), (1.0, 3.0), (1.0, 3.0), 10.0, 10.0, 0.0)
    assert costs.cpu_s(50_000) == pytest.approx(200 * 1.0 + 300 * 3.0 + 5 * 10.0)


def test_a_run_that_is_too_long_for_the_machine_ends_the_dry_run_early(tiny: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"too slow for this run: an update took .* 100 of them take \d+ s or more"):
        dry_run(tiny, World.alone(), most_s=1e-3)
    assert not run_storage(tiny).local_path().exists()  # type: ignore[union-attr]


def test_a_rehearsal_does_not_ask_for_the_run_that_the_run_starts_from(tiny: RunConfig) -> None:
    config = tiny.model_copy(update={"run": tiny.run.model_copy(update={"start_from": Address("nowhere")})})
    with rehearsal(config, World.alone()) as run:
        assert run.samples_seen == 0


@pytest.mark.parametrize("squares", [False, True])
def test_a_rehearsed_freeze_goes_as_far_as_that_of_an_ordinary_stage(tiny: RunConfig, squares: bool) -> None:
    ratio = tiny.model.ratio.model_copy(update={"squares": squares})
    config = tiny.model_copy(update={"model": tiny.model.model_copy(update={"ratio": ratio})})
    with rehearsal(config, World.alone()) as run:
        assert isinstance(run.stages, StageTrainer)
        go_to_stage(run.stages, 1)
        found = try_freeze(run.stages, 0)
        assert run.stages.prior.num_stages == 1
    assert found.strength.gain > 0
    assert 1 < found.bound[0] < 2 * GAP


@pytest.mark.parametrize("equilibrate", ["langevin", "smc", "tilt"])
def test_a_freeze_of_chains_is_rehearsed(tiny: RunConfig, equilibrate: str) -> None:
    prior = tiny.prior.model_copy(update={"kind": "short_run", "equilibrate": equilibrate})
    forecast = dry_run(tiny.model_copy(update={"prior": prior}), World.alone())
    assert forecast.costs.freeze > 0
