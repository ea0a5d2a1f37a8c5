"""A run that starts from another one as it was before its ratios began."""

import time
from typing import Any

import pytest

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError
from ebmscale.model.checkpoint import position_of
from ebmscale.model.run_folder import run_storage
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.metrics import EVENTS_FILE, METRICS_FILE
from ebmscale.training.run import Run
from tests.training.test_resume import changed, final_files, flip_bit, history, positions, run_until

START = 1600


def of_two_stages(tiny: RunConfig, name: str, **blocks: dict[str, Any]) -> RunConfig:
    """Encoder and generator until `START`, then the prior on their posteriors."""
    tree = {
        "run": {"name": name},
        "posterior": {"start": "encoder", "num_steps": 0},
        "stages": {"start_samples": START},
        "train": {"max_samples": 2240},
    }
    config = changed(tiny, **{block: tree.get(block, {}) | blocks.get(block, {}) for block in tree.keys() | blocks})
    generator = config.train.generator.model_copy(update={"stop_samples": START})
    return config.model_copy(update={"train": config.train.model_copy(update={"generator": generator})})


@pytest.fixture
def generator_alone(tiny: RunConfig) -> RunConfig:
    """A trained run under N(0, I), which learns no prior."""
    stages = {"start_samples": 0, "max_stages": 0}
    config = of_two_stages(tiny, "generator", stages=stages, train={"max_samples": START})
    config = config.model_copy(update={"method": "gaussian"})
    run_until(config)
    return config


def starting_from(config: RunConfig, other: RunConfig, name: str) -> RunConfig:
    return changed(config, run={"name": name, "start_from": str(run_storage(other).url)})


@pytest.mark.parametrize(
    ("method", "prior"),
    [
        ("adaptive", {"base": "moments"}),
        ("lebm", {}),
        pytest.param("adaptive", {}, marks=pytest.mark.slow),
        pytest.param("tre", {}, marks=pytest.mark.slow),
    ],
)
def test_it_is_bit_for_bit_the_run_that_trains_all_itself(
    tiny: RunConfig, generator_alone: RunConfig, method: str, prior: dict[str, Any]
) -> None:
    alone = of_two_stages(tiny, "alone", prior=prior).model_copy(update={"method": method})
    run_until(alone)
    joined = starting_from(alone, generator_alone, "joined")
    run_until(joined)
    assert final_files(joined) == final_files(alone)
    assert history(joined, METRICS_FILE) == history(alone, METRICS_FILE)
    events, expected = history(joined, EVENTS_FILE), history(alone, EVENTS_FILE)
    assert [event["samples_seen"] for event in events] == [event["samples_seen"] for event in expected]
    assert events[START // 160 :] == expected[START // 160 :]  # before, reconstructions have other noise


def test_an_interruption_where_the_ratios_begin_changes_nothing(tiny: RunConfig) -> None:
    straight, broken = of_two_stages(tiny, "straight"), of_two_stages(tiny, "broken")
    run_until(straight)
    run_until(broken, stop_after=START)
    assert positions(broken)[-1] == START
    run_until(broken)
    assert final_files(broken) == final_files(straight)
    assert history(broken, EVENTS_FILE) == history(straight, EVENTS_FILE)


def test_the_newest_valid_checkpoint_from_before_the_ratios_is_taken(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "save_if_idle", Run.save_and_wait)  # on a slow disk no save is put off
    kept = {"every_samples": 640, "keep_every": 640}
    other = of_two_stages(tiny, "other", checkpoint=kept, prior={"base": "moments"})
    run_until(other)
    first, *others = sorted(run_storage(other).list("checkpoints"))
    for name in others[:2]:
        flip_bit(run_storage(other), f"checkpoints/{name}/generator-0000-000.safetensors")
    joined = starting_from(of_two_stages(tiny, "x"), other, "joined")
    run_until(joined, stop_after=672)
    assert first in run_storage(joined).list("checkpoints")
    assert positions(joined) == [640, 672]
    assert history(joined, METRICS_FILE) == history(other, METRICS_FILE)[:2]


def test_a_run_of_two_stages_keeps_the_checkpoint_where_its_prior_begins(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the storage is so slow that the checkpoint before it is still being written."""
    other = of_two_stages(tiny, "other", prior={"base": "moments"}, checkpoint={"every_samples": 480})
    write = CheckpointStore.write_part

    def slow(self: CheckpointStore, name: str, *part: Any) -> Any:
        time.sleep(0.5 if position_of(name) == 1440 else 0)
        return write(self, name, *part)

    monkeypatch.setattr(CheckpointStore, "write_part", slow)
    run_until(other)
    assert positions(other)[0] == START
    joined = starting_from(of_two_stages(tiny, "x"), other, "joined")
    run_until(joined, stop_after=START + 32)
    assert positions(joined) == [START, START + 32]


def test_what_cannot_be_started_from_is_refused(tiny: RunConfig, generator_alone: RunConfig) -> None:
    config = of_two_stages(tiny, "x")
    wider = changed(config, model={"latent_dim": 5}, run={"seed": 4})
    longer = changed(config, stages={"start_samples": 320})
    nowhere = changed(config, run={"start_from": str(run_storage(tiny).url) + "-none"})
    for one, words in (
        (starting_from(wider, generator_alone, "x"), r"has other values of run\.seed, model\.latent_dim, so its"),
        (starting_from(longer, generator_alone, "x"), "needs a checkpoint at 320 samples or before.*none before 1,600"),
        (starting_from(config, config, "x"), "is the run itself"),
        (nowhere, "there is no run at"),
    ):
        with pytest.raises(ConfigError, match=rf"run\.start_from.*{words}"):
            run_until(one)
    assert not run_storage(config).list("checkpoints")


def test_a_run_with_a_checkpoint_does_not_ask_for_the_other(tiny: RunConfig, generator_alone: RunConfig) -> None:
    joined = starting_from(of_two_stages(tiny, "x"), generator_alone, "joined")
    run_until(joined, stop_after=1920)
    run_until(changed(joined, run={"start_from": "gone"}))
    assert positions(joined)[-1] == 2240
