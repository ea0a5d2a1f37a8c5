"""A stop is heard in every long part, agreed on, saved within its time of grace, and changes nothing."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from test_resume import changed, final_files, history, run_until

from ebmscale.config import RunConfig, parse_config
from ebmscale.errors import Interrupted, StorageError
from ebmscale.model.checkpoint import position_of
from ebmscale.model.run_folder import run_storage
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training import stopping as stopping_module
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.loop import train
from ebmscale.training.stopping import Stopped, StopPoll
from ebmscale.training.summary import Activity, RunSummary
from ebmscale.training.view import View
from ebmscale.world import World
from tests.conftest import TINY

STAGES_AT_ONCE: dict[str, Any] = {"stages": {"significance": 1e-9}, "train": {"max_samples": 2560}}
"""Every stage counts, and a stop in the 40th step of the evidence comes before the end."""


class StopInPart(StopSignal):
    """Is asked to stop when the run has come to its nth poll within a part of an update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str, after: int):
        super().__init__()
        self.left = after

        class Poll(StopPoll):
            def __call__(poll) -> None:
                current = self.activity().part if self.activity is not None else None
                if current is not None and current[0] == part:
                    self.left -= 1
                    if self.left == 0:
                        self.request("SIGTERM")
                super().__call__()

        self.activity: Callable[[], Activity] | None = None
        monkeypatch.setattr("ebmscale.training.opening.StopPoll", Poll)
        monkeypatch.setattr(stopping_module, "POLL_EVERY_S", 0.0)

    def view(self) -> View:
        stop = self

        class Watching(View):
            def start(self, run: RunSummary, activity: Callable[[], Activity]) -> None:
                stop.activity = activity

        return Watching(quiet=True)


@pytest.fixture(scope="module")
def straight(digits_url: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that was never stopped."""
    text = TINY.replace("DATA", digits_url) + f"storage: {{url: {tmp_path_factory.mktemp('straight')}}}\n"
    config = changed(parse_config(text), run={"name": "straight"}, **STAGES_AT_ONCE)
    run_until(config)
    return config


@pytest.mark.parametrize(
    ("part", "after"),
    [("posterior", 1), ("posterior", 100), ("evidence", 1), ("evidence", 23), ("evidence", 26), ("evidence", 40)],
)
def test_a_stop_inside_a_chain_saves_and_changes_nothing(
    tiny: RunConfig, straight: RunConfig, monkeypatch: pytest.MonkeyPatch, part: str, after: int
) -> None:
    broken = changed(tiny, run={"name": "broken"}, **STAGES_AT_ONCE)
    with monkeypatch.context() as patch:
        stop = StopInPart(patch, part, after)
        with pytest.raises(Interrupted, match="Stopped by SIGTERM; saved at"):
            train(broken, stop.view(), World.alone(), stop)
    assert position_of(CheckpointStore(run_storage(broken)).finished()[0]) < 2560
    run_until(broken)
    assert final_files(broken) == final_files(straight)
    for name in ("metrics.jsonl", "events.jsonl"):
        assert history(broken, name) == history(straight, name)


def test_a_poll_asks_the_others_only_as_often_as_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Counting(World):
        def any(self, flag: bool) -> bool:
            asked.append(flag)
            return flag

    poll = StopPoll(stop := StopSignal(), Counting(0, 2, World.alone().device))
    poll.pace(step_s=0.1)  # 5 steps take half a second
    for _ in range(10):
        poll()
    assert asked == [False, False]
    stop.request("SIGTERM")
    for _ in range(4):
        poll()
    with pytest.raises(Stopped):
        poll()


def test_a_stop_before_training_begins(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopSignal()

    def slow_verify(*_: Any, progress: Any, **__: Any) -> None:
        stop.request("SIGTERM")
        for _ in range(200):
            time.sleep(0.05)
            progress("a shard")

    monkeypatch.setattr("ebmscale.training.opening.verify", slow_verify)
    with pytest.raises(Interrupted, match="before training began"):
        train(tiny, View(quiet=True), World.alone(), stop)


def test_listening_is_harmless_off_the_main_thread() -> None:
    heard = []

    def work() -> None:
        with StopSignal().listening() as stop:
            stop.request("a notice")
            heard.append((stop.name, stop.since))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard[0][0] == "a notice"
    assert heard[0][1] <= time.monotonic()


def fail_parts(monkeypatch: pytest.MonkeyPatch, fails: Any) -> None:
    """Makes the storage refuse parts of checkpoints while `fails()`."""
    publish = Storage.publish

    def refuse(self: Storage, path: str, data: bytes, **options: bool) -> None:
        if "checkpoints/" in path and fails():
            raise StorageError("Cannot write (No space left on device); free some.")
        publish(self, path, data, **options)

    monkeypatch.setattr(Storage, "publish", refuse)


def test_training_goes_on_while_the_storage_fails_and_ends_with_the_last_checkpoint_intact(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []

    class Watching(View):
        def batch(self, batch: Any) -> None:
            reached.append(batch.start)

    store = CheckpointStore(run_storage(tiny))
    fail_parts(monkeypatch, lambda: bool(reached) and bool(store.finished()))
    config = changed(tiny, checkpoint={"every_samples": 320, "retry_s": 1.5}, train={"max_samples": 1_000_000})
    with pytest.raises(StorageError, match=r"No space left.*the checkpoint at 320 samples is intact"):
        train(config, Watching(quiet=True), World.alone(), StopSignal())
    assert reached[-1] > 640  # the second checkpoint was due there, and more batches followed
    assert store.describe()[0].problem is None
    monkeypatch.undo()
    run_until(changed(config, train={"max_samples": 960}))


def test_a_storage_that_comes_back_is_forgiven(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    until = time.monotonic() + 3
    fail_parts(monkeypatch, lambda: time.monotonic() < until)
    run_until(tiny)
    assert position_of(CheckpointStore(run_storage(tiny)).finished()[0]) == 3200


def test_a_stop_does_not_wait_for_a_dead_storage_beyond_its_grace(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_parts(monkeypatch, lambda: True)
    stop = StopSignal()

    class Watching(View):
        def batch(self, batch: Any) -> None:
            if batch.end == 320:
                stop.request("SIGTERM")

    config = changed(tiny, checkpoint={"grace_s": 1.0})
    with pytest.raises(StorageError, match="could not be written before the time to stop ran out"):
        train(config, Watching(quiet=True), World.alone(), stop)
