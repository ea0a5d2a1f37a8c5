"""What a dry run takes for granted about the stages of the run that it forecasts."""

from pathlib import Path

import pytest

from ebmscale.config import RunConfig, load_config
from ebmscale.runtime.dryrun import _age

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
