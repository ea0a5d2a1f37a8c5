"""Runs that do not fit a machine are refused in one sentence before anything is built."""

import os

import pytest
import torch

from ebmscale.config import RunConfig, parse_config
from ebmscale.errors import ConfigError
from ebmscale.training.capacity import check_room, check_threads, least_bytes
from tests.conftest import TINY

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")


def config(*overrides: str) -> RunConfig:
    return parse_config(TINY.replace("DATA", "nowhere"), overrides)


def test_a_run_that_fits_passes() -> None:
    check_threads(config())
    check_room(config(), None, 0, 1, CPU)
    check_room(config(), SHAPE, 1797, 1, CPU)


def test_more_threads_than_processors_are_refused() -> None:
    count = os.cpu_count() or 1
    check_threads(config(f"num_threads={count}"))
    with pytest.raises(ConfigError, match=f"this machine has {count} processors"):
        check_threads(config(f"num_threads={count + 1}"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.generator.width=1000000000", "model.generator.width"),
        ("model.ratio.hidden=[10000000,10000000]", "model.ratio.hidden"),
        ("model.latent_dim=10000000000000000", "lower model.latent_dim"),
        ("stages.buffer_samples=4000000000000", "stages.buffer_samples"),
        ("prior.num_chains=4000000000000", "prior.num_chains"),
        ("posterior.num_steps=1000000000000", "posterior.num_steps"),
        ("train.batch_size=1000000000000", "train.batch_size"),
    ],
)
def test_a_run_without_room_is_refused_by_the_key_that_asks_for_most(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_room(config(override), SHAPE, 1797, 1, CPU)
    assert words in str(caught.value)


def test_what_is_read_ahead_is_bounded_by_the_set() -> None:
    wide = config("data.shuffle_window=1000000000000")
    check_room(wide, SHAPE, 1797, 1, CPU)
    with pytest.raises(ConfigError, match=r"data\.shuffle_window"):
        check_room(wide, SHAPE, 10**15, 1, CPU)


def test_workers_share_what_is_needed() -> None:
    alone, four = (least_bytes(config(), SHAPE, 1797, size) for size in (1, 4))
    assert all(four[name] <= alone[name] for name in alone)
    assert sum(four.values()) < sum(alone.values())
