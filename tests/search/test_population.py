"""Population-based training, decided from records, and the taking over of real checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebmscale.config import RunConfig, parse_config, with_values
from ebmscale.model.checkpoint import position_of
from ebmscale.model.run_folder import run_storage
from ebmscale.search.check import trial_config
from ebmscale.search.population import MUTABLE, exploit, explore, take_over
from ebmscale.search.trial import Origin, TrialRecord
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.loop import train
from ebmscale.training.opening import open_run
from ebmscale.training.update import train_batch
from ebmscale.training.view import View
from ebmscale.world import World
from tests.conftest import TINY
from tests.search.conftest import POPULATION, make

VALUES = {"train.ratio.rate": 1e-3, "stages.updates_per_batch": 6}


def trial(number: int, *values: float, **changes: Any) -> TrialRecord:
    reports = [{"samples_seen": 1250.0 * (i + 1), "held_out_mse": value} for i, value in enumerate(values)]
    return TrialRecord(number=number, reports=reports, **{"values": VALUES} | changes)


def decide(number: int, *trials: TrialRecord) -> Any:
    config, space = make(**POPULATION)
    return exploit(space, config, number, {one.number: one for one in trials})


def test_the_worst_takes_over_the_best_and_no_other_moves() -> None:
    trials = [trial(n, 1.0, 0.1 * n) for n in range(4)]
    moves = [decide(n, *trials) for n in range(4)]
    assert [move is not None for move in moves] == [False, False, False, True]
    assert moves[3].origin == Origin(donor=0, folder="0000", samples_seen=2500)
    assert decide(3, *trials) == moves[3]  # a function of the records


def test_trials_are_compared_at_the_same_place() -> None:
    """What others reported later plays no role, nor does it matter that they are done or have moved on."""
    ahead = trial(0, 1.0, 0.5, 0.01, 0.01, status="finished")
    assert decide(1, ahead, trial(1, 1.0, 0.4)) is None
    move = decide(1, ahead, trial(1, 1.0, 0.6))
    assert move.origin.samples_seen == 2500
    moved = ahead.model_copy(update={"origins": [Origin(donor=5, folder="0005", samples_seen=1)]})
    assert decide(1, moved, trial(1, 1.0, 0.6)).origin.folder == "0000-1"
    moved.origins.append(Origin(donor=6, folder="0006", samples_seen=2500))  # what it had there is the run's before
    assert decide(1, moved, trial(1, 1.0, 0.6)).origin.folder == "0000-1"


def test_one_that_is_ahead_goes_back_to_where_it_can_be_compared() -> None:
    behind, ahead = trial(0, 1.0, 0.1, 0.1), trial(1, 1.0, 0.6, 0.05, 0.05)
    move = decide(1, behind, ahead)
    assert move.origin == Origin(donor=0, folder="0000", samples_seen=2500)
    ahead.move(move.origin, move.values)
    assert ahead.samples_seen == 2500
    ahead.reports += trial(1, 1.0, 0.6, 0.05, 0.05).reports[2:]
    assert decide(1, behind, ahead) is None  # once, and not again
    assert decide(1, trial(0, 1.0, 0.1, 0.1, 0.01), ahead).origin.samples_seen == 5000


@pytest.mark.parametrize(
    "trials",
    [
        [trial(1, 1.0, 0.6)],  # nobody else
        [trial(0, 1.0), trial(1, 1.0, 0.6)],  # nobody else there yet
        [trial(0, 1.0, 0.1), trial(1, 1.0)],  # not at a place of comparison
        [trial(0, 1.0, 0.1), trial(1, 1.0, 0.6, 0.6)],  # between two of them
        [trial(0, 1.0, 0.5), trial(1, 1.0, 0.5)],  # no worse
        [trial(0, 1.0, 0.1, status="failed"), trial(1, 1.0, 0.6)],
        [trial(0, *[0.1] * 8), trial(1, *[0.6] * 7, 0.6)],  # 9,000 is the end, and 10,000 would be a place
    ],
)
def test_nobody_moves(trials: list[TrialRecord]) -> None:
    assert decide(1, *trials) is None


def test_explored_values_are_near_or_anew_and_always_in_the_space() -> None:
    _, space = make(**POPULATION)
    rng = np.random.default_rng(0)
    drawn = [explore(space, VALUES, rng) for _ in range(400)]
    assert all(parameter.holds(one[key]) for one in drawn for key, parameter in space.space.items())
    near = [one["train.ratio.rate"] in (8e-4, 1.2e-3) for one in drawn]
    assert 0.65 < np.mean(near) < 0.85  # all but the quarter that is drawn anew
    assert {one["stages.updates_per_batch"] for one in drawn} == {2, 6, 8}


@pytest.fixture(scope="module")
def trained(digits_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with checkpoints at 1,280 and 1,600 samples, each of which is written before the run goes on."""
    folder = tmp_path_factory.mktemp("runs")
    for end in (1280, 1600):
        changes = {
            "run.name": "donor",
            "storage.url": str(folder),
            "train.max_samples": end,
            "checkpoint.every_samples": 640,
        }
        config = with_values(parse_config(TINY.replace("DATA", digits_url)), changes, "donor")
        train(config, View(quiet=True), World.alone(), StopSignal())
    return folder


@pytest.fixture
def donor(trained: Path, digits_url: str, tmp_path: Path) -> RunConfig:
    shutil.copytree(trained, tmp_path / "runs")
    changes = {"run.name": "donor", "storage.url": str(tmp_path / "runs"), "train.max_samples": 1600}
    return with_values(parse_config(TINY.replace("DATA", digits_url)), changes, "donor")


def heir(config: RunConfig, **values: Any) -> RunConfig:
    return with_values(config, {"run.name": "heir", "train.max_samples": 3200} | values, "heir")


def test_a_taken_over_checkpoint_goes_on_with_the_new_values_at_once(donor: RunConfig) -> None:
    config = heir(donor, **{"train.generator.rate": 1e-3, "posterior.num_steps": 5, "stages.updates_per_batch": 1})
    origin = Origin(donor=0, folder="donor", samples_seen=1600)
    assert take_over(origin, run_storage(donor), run_storage(config), wait_s=0) == 1600
    old, new = open_run(donor, World.alone(), StopSignal()), open_run(config, World.alone(), StopSignal())
    assert new.samples_seen == 1600
    assert new.generator_rate() == 1e-3
    for (name, before), (_, after) in zip(
        old.generator.full_weights().items(), new.generator.full_weights().items(), strict=True
    ):
        assert before.equal(after), name
    assert new.stages.state == old.stages.state
    assert new.stages.prior.num_stages == old.stages.prior.num_stages
    shares = (one.stages.latents.share() for one in (old, new))
    assert all(a.values.equal(b.values) for a, b in zip(*shares, strict=True))
    train_batch(new, next(new.batches()))
    old.close()
    new.close()


def test_the_checkpoint_nearest_to_the_agreed_place_is_taken(donor: RunConfig) -> None:
    positions = [position_of(name) for name in CheckpointStore(run_storage(donor)).finished()]
    assert positions == [1600, 1280]
    run = run_storage(heir(donor))
    assert take_over(Origin(donor=0, folder="donor", samples_seen=1250), run_storage(donor), run, wait_s=0) == 1280


def test_a_damaged_checkpoint_is_not_handed_on(donor: RunConfig) -> None:
    store = CheckpointStore(run_storage(donor))
    store.storage.publish(f"checkpoints/{store.finished()[0]}/state.json", b"{}")
    run = run_storage(heir(donor))
    assert take_over(Origin(donor=0, folder="donor", samples_seen=1600), store.storage, run, wait_s=0) == 1280
    assert [position_of(name) for name in CheckpointStore(run).finished()] == [1280]


def test_a_donor_that_has_nothing_yet_is_waited_for(tmp_path: Path) -> None:
    waited: list[float] = []
    origin = Origin(donor=0, folder="donor", samples_seen=1)
    nothing, run = Storage.at(tmp_path / "donor"), Storage.at(tmp_path / "heir")
    assert take_over(origin, nothing, run, wait_s=3.0, sleep=waited.append) is None
    assert sum(waited) == 3.0


def test_mutable_keys_change_no_shape(tiny: RunConfig) -> None:
    """Each of them may change between a checkpoint and the run that takes it over."""
    config, space = make(**POPULATION)
    assert set(space.space) <= set(MUTABLE)
    made = trial_config(config, space, 0, 1, VALUES)
    before, after = json.loads(config.model_dump_json()), json.loads(made.model_dump_json())
    assert before["model"] == after["model"]
    assert before["prior"]["num_chains"] == after["prior"]["num_chains"]
