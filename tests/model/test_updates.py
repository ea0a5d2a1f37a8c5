"""The number of ratio updates for a batch: as it is given, or by the operations of encoder and ratio network."""

from typing import Any

import pytest
import torch

from ebmscale.config import RunConfig, changed_keys, config_of
from ebmscale.model import updates
from ebmscale.model.updates import updates_per_batch
from ebmscale.networks import build_encoder

SHAPE = (1, 28, 28)
STILL: dict[str, Any] = {
    "run": {"name": "r"},
    "data": {"url": "d"},
    "model": {"latent_dim": 16, "encoder": {"width": 32}, "ratio": {"hidden": [20]}},
    "posterior": {"start": "encoder", "num_steps": 0},
    "stages": {"start_samples": 1000, "batch_size": 256},
    "train": {"max_samples": 2000, "batch_size": 128, "generator": {"stop_samples": 1000}},
}


def config(**blocks: Any) -> RunConfig:
    changed = {
        name: STILL.get(name, {}) | block if isinstance(block, dict) else block for name, block in blocks.items()
    }
    return config_of(STILL | changed, "test")


def test_a_number_that_is_given_stays() -> None:
    assert updates_per_batch(config(stages={"updates_per_batch": 3}), SHAPE) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"generator": {"stop_samples": 0}}},
        {"posterior": {"num_steps": 2}},
        {"method": "gaussian"},
        {"method": "lebm"},
    ],
)
def test_where_the_generator_trains_or_latents_take_steps_it_is_eight(changes: dict[str, Any]) -> None:
    assert updates_per_batch(config(**changes), SHAPE) == 8


def test_where_posteriors_stand_still_the_ratio_takes_three_quarters_of_the_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A perceptron 16-20-1 takes 2 (16 * 20 + 20) operations a row, three times that to train, for both sides."""
    monkeypatch.setattr(updates, "MOST", 10**9)
    found = updates_per_batch(config(), SHAPE)
    of_update = 3 * 2 * 256 * 2 * (16 * 20 + 20)
    encoder = build_encoder(SHAPE, 16, 32, generator=torch.Generator())
    of_image = updates._operations(encoder, next(encoder.parameters()).new_zeros(1, *SHAPE))
    assert 3 * 128 * of_image <= found * of_update < 3 * 128 * of_image + of_update


def test_it_has_bounds_and_does_not_depend_on_the_share_of_a_worker() -> None:
    assert updates_per_batch(config(), SHAPE) == updates.MOST
    assert updates_per_batch(config(model={"ratio": {"hidden": [2000, 2000]}}), SHAPE) == updates.USUAL


def test_a_run_that_began_with_a_number_goes_on_where_auto_is_asked_for() -> None:
    begun, now = config(stages={"updates_per_batch": 8}), config()
    assert changed_keys(begun, now) == []
    assert changed_keys(now, begun) == ["stages.updates_per_batch"]
