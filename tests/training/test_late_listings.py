"""A storage that lists new files late: no checkpoint is lost, and no run restarts from the beginning."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resume import changed, final_files, run_until

from ebmscale.config import CheckpointBlock, RunConfig
from ebmscale.model.checkpoint import position_of
from ebmscale.model.checkpoint_reader import NAMES_FILE
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore, kept_by, name_of

TOKENS = ("0123456789ab", "ba9876543210")


class LateListings:
    """Makes listings omit a new name, or keep a deleted one, for some calls."""

    def __init__(self, late: int):
        self.late = late
        self._shown: dict[tuple[str, str], tuple[list[str], int]] = {}

    def list(self, listed: Any, storage: Storage, path: str) -> list[str]:
        """A late listing of `path`; `listed` makes the real one."""
        key = storage.url, path
        now = listed(storage, path)
        shown, left = self._shown.get(key, ([], self.late))
        if now != shown and left > 0:
            self._shown[key] = shown, left - 1
            return shown
        self._shown[key] = now, self.late
        return now


@pytest.fixture
def lag() -> Iterator[Any]:
    """A function that makes all later listings late."""
    with pytest.MonkeyPatch.context() as patch:
        listed = Storage.list

        def begin(late: int) -> None:
            listings = LateListings(late)
            patch.setattr(Storage, "list", lambda self, path="": listings.list(listed, self, path))

        yield begin


def write(store: CheckpointStore, name: str, num_ratios: int) -> None:
    """A checkpoint as the saver writes it, with ratios that depend on their number alone."""
    ratios = store.write_ratios([{"w": torch.full((2,), float(stage))} for stage in range(num_ratios)])
    position = position_of(name)
    about = {"samples_seen": position, "stage": 1, "good": True, "metrics": {}, "ratios": ratios}
    about |= {"files": {}, "tensors": {}}
    store.commit(name, about, {"state": {}, "clock": {}})


def save(store: CheckpointStore, name: str, num_ratios: int) -> None:
    """Writes a checkpoint, and deletes those that are not kept."""
    write(store, name, num_ratios)
    store.retain(name)


SAVES = st.lists(st.tuples(st.booleans(), st.integers(0, 1)), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(late=st.integers(0, 6), saves=SAVES, keep_last=st.integers(2, 3))
def test_whatever_is_listed_late_every_kept_checkpoint_is_whole(
    late: int, saves: list[tuple[bool, int]], keep_last: int
) -> None:
    """Saves by processes one after another (True: a new one begins), each with as many ratios as before or one more."""
    with pytest.MonkeyPatch.context() as patch:
        listed, listings = Storage.list, LateListings(late)
        patch.setattr(Storage, "list", lambda self, path="": listings.list(listed, self, path))
        storage = Storage.at(f"memory://late/{uuid.uuid4().hex}")
        policy = CheckpointBlock(keep_last=keep_last)
        store, token, num_ratios, written = CheckpointStore(storage, policy), 0, 0, []
        for index, (anew, more) in enumerate(saves):
            if anew:
                store, token = CheckpointStore(storage, policy), token + 1
                assert store.newest(lambda saved: saved.samples_seen) == (position_of(written[-1]) if written else None)
            num_ratios += more
            written.append(name_of(100 * (index + 1), TOKENS[token % 2]))
            save(store, written[-1], num_ratios)
            for name in sorted(written)[-keep_last:]:
                CheckpointStore(storage).open(name).verify()
        patch.undo()
        kept = kept_by(policy, {name: {} for name in written})
        assert set(CheckpointStore(storage).finished()) >= kept


def test_a_run_is_resumed_at_a_checkpoint_that_is_not_listed_yet(tiny: RunConfig, lag: Any) -> None:
    config = changed(tiny, checkpoint={"every_samples": 160}, train={"max_samples": 640})
    straight = changed(config, run={"name": "straight"})
    run_until(straight)
    lag(4)
    run_until(config, stop_after=480)
    lag(4)  # a new process, to which nothing at all is listed at first
    assert CheckpointStore(Storage.at(config.storage.url).child("tiny")).newest(lambda s: s.samples_seen) == 480
    run_until(config)
    assert final_files(config) == final_files(straight)


def test_a_checkpoint_that_appears_between_two_looks_is_not_taken_for_a_leftover(lag: Any) -> None:
    """An earlier version wrote no `checkpoints.json`, so its checkpoints are known from listings only."""
    storage = Storage.at(f"memory://late/{uuid.uuid4().hex}")
    for position in (100, 200):
        save(CheckpointStore(storage), name_of(position, TOKENS[0]), 1)
    store = CheckpointStore(storage)
    write(store, name_of(300, TOKENS[1]), 1)
    storage.delete(NAMES_FILE)
    lag(1)
    store.retain(name_of(300, TOKENS[1]))
    for position in (200, 300):
        CheckpointStore(storage).open(name_of(position, TOKENS[position == 300])).verify()


def test_names_that_cannot_be_read_leave_the_listing(lag: Any) -> None:
    storage = Storage.at(f"memory://late/{uuid.uuid4().hex}")
    save(CheckpointStore(storage), name_of(100, TOKENS[0]), 1)
    for junk in (b"[", b'{"names": ["../../x", "000000000900-0123456789ab"]}'):
        storage.publish(NAMES_FILE, junk)
        assert CheckpointStore(storage).names() == [name_of(100, TOKENS[0])]
