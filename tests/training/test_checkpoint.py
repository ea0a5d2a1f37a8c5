"""The checkpoints of a run in a storage: which one is used, which are kept, and what happens to damaged ones."""

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.config import CheckpointBlock
from ebmscale.errors import DamagedError, LostRunError, StorageError
from ebmscale.model.checkpoint import FOLDER, RATIO_FOLDER, position_of
from ebmscale.model.pieces import PartImage, Span, piece, whole_spans
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import Cancelled, CheckpointStore, kept_by, make_token, name_of, retried

TOKEN = "0123456789ab"
NET = {"w": torch.arange(6.0).view(2, 3)}
RATIOS = [{"a": torch.ones(3)}, {"a": torch.zeros(3)}]


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.at(tmp_path if request.param == "folder" else f"memory://{tmp_path.name}")


def write(storage: Storage, position: int, metrics: dict[str, float] | None = None, **policy: Any) -> str:
    """A checkpoint of one rank, as the saver writes it."""
    store = CheckpointStore(storage, CheckpointBlock(**policy))
    name = name_of(position, TOKEN)
    pieces = [piece(key, value + position) for key, value in NET.items()]
    image = PartImage(pieces)
    image.fill(pieces)
    files = {"net-0000-000.safetensors": store.write_part(name, "net-0000-000.safetensors", image)}
    manifest = {
        "samples_seen": position, "stage": 3, "good": True, "metrics": metrics or {}, "files": files,
        "ratios": store.write_ratios(RATIOS), "tensors": {"net": {"w": [2, 3]}},
    }  # fmt: skip
    store.commit(name, manifest, {"state": {"position": position}})
    store.retain(name)
    return name


def positions(storage: Storage) -> list[int]:
    return [position_of(name) for name in reversed(CheckpointStore(storage).finished())]


def test_what_was_written_is_read(storage: Storage) -> None:
    saved = CheckpointStore(storage).open(write(storage, 10))
    (span,) = whole_spans(saved.shapes("net"))
    assert torch.equal(saved.read("net", [span])[span].view(2, 3), NET["w"] + 10)
    inner = Span("w", 2, 3)
    assert saved.read("net", [inner])[inner].tolist() == [12, 13, 14]
    assert saved.values("state") == {"position": 10}
    assert [ratio["a"].tolist() for ratio in saved.ratios()] == [[1, 1, 1], [0, 0, 0]]
    saved.verify()


def test_ratios_are_stored_once_and_healed(storage: Storage) -> None:
    write(storage, 10)
    files = storage.list(RATIO_FOLDER)
    assert len(files) == 2 * len(RATIOS)
    damage(storage, f"{RATIO_FOLDER}/{files[0]}")
    write(storage, 20)
    assert storage.list(RATIO_FOLDER) == files
    CheckpointStore(storage).open(name_of(20, TOKEN)).verify()


@pytest.mark.parametrize("which", [0, 1])
def test_one_damaged_ratio_file_loses_nothing(storage: Storage, which: int) -> None:
    name = write(storage, 10)
    damage(storage, f"{RATIO_FOLDER}/{storage.list(RATIO_FOLDER)[which]}")
    assert len(CheckpointStore(storage).open(name).ratios()) == 2


def test_ratios_that_no_checkpoint_knows_go(storage: Storage) -> None:
    storage.publish(f"{RATIO_FOLDER}/stage-009-000000000000.safetensors", b"of an abandoned run")
    write(storage, 10)
    assert all("stage-009" not in file for file in storage.list(RATIO_FOLDER))


def damage(storage: Storage, path: str) -> None:
    data = bytearray(storage.read_bytes(path))
    data[len(data) // 2] ^= 1
    storage.publish(path, bytes(data))


@pytest.mark.parametrize("file", ["net-0000-000.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "truncate", "delete", "empty"])
def test_the_newest_sound_checkpoint_is_taken(
    storage: Storage, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(storage, 10)
    path = f"{FOLDER}/{write(storage, 20)}/{file}"
    if how == "flip":
        damage(storage, path)
    elif how == "delete":
        storage.delete(path)
    else:
        storage.publish(path, storage.read_bytes(path)[:-9] if how == "truncate" else b"")

    def everything(saved: Any) -> int:
        saved.verify()
        return saved.samples_seen

    assert CheckpointStore(storage).newest(everything) == 10
    assert f"skipping checkpoint {20:012d}-{TOKEN}" in caplog.text


def test_a_storage_that_cannot_be_read_is_not_damage(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A return to an older checkpoint because of an outage would lose work."""
    write(storage, 10)
    monkeypatch.setattr(Storage, "read_bytes", lambda self, path: refuse())
    with pytest.raises(StorageError, match="503") as caught:
        CheckpointStore(storage).newest(lambda saved: saved.samples_seen)
    assert not isinstance(caught.value, DamagedError)


def refuse() -> bytes:
    raise StorageError("503")


def test_the_last_and_the_multiples_and_the_best_are_kept(storage: Storage) -> None:
    errors = {10: 5.0, 20: 1.0, 30: 4.0, 40: 3.0, 50: 2.0}
    for position, error in errors.items():
        write(storage, position, {"held_out_mse": error}, keep_every=30, keep_best=1)
    assert positions(storage) == [20, 30, 40, 50]


def test_a_checkpoint_that_was_put_off_counts_for_the_multiple_before_it(storage: Storage) -> None:
    """A slow storage delays checkpoints. The first one in each interval is kept, for any later ones."""
    for position in (12, 22, 33, 43, 54, 61, 75, 86):
        write(storage, position, keep_every=30)
    assert positions(storage) == [33, 61, 75, 86]


def test_leftovers_of_dead_writers_and_damaged_checkpoints_go_with_the_next_save(storage: Storage) -> None:
    write(storage, 10)
    storage.publish(f"{FOLDER}/000000000015-ffffffffffff/net-0000-000.safetensors", b"half")
    damaged = write(storage, 20)
    damage(storage, f"{FOLDER}/{damaged}/manifest.json")
    write(storage, 30)
    assert positions(storage) == [10, 30]
    assert len(CheckpointStore(storage).names()) == 2


def test_a_save_asks_for_what_is_new(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first save of a process: the number of requests does not depend on how many checkpoints are kept."""
    requests: list[str] = []

    def counted(name: str) -> Any:
        ask = getattr(Storage, name)
        return lambda self, *args, **settings: (requests.append(name), ask(self, *args, **settings))[1]

    for name in ("exists", "size", "list", "read_bytes", "publish"):
        monkeypatch.setattr(Storage, name, counted(name))
    numbers = []
    for position in range(1, 40):
        requests.clear()
        write(storage, position, {"loss": math.nan}, keep_every=1)
        numbers.append(len(requests))
    assert positions(storage) == list(range(1, 40))
    assert len(set(numbers[5:])) == 1
    assert numbers[-1] <= 30


NAMES = st.lists(st.integers(0, 50), min_size=1, unique=True).map(lambda found: [name_of(p, TOKEN) for p in found])


@given(names=NAMES, last=st.integers(2, 4), every=st.integers(0, 5), best=st.integers(0, 3), seed=st.randoms())
def test_the_policy(names: list[str], last: int, every: int, best: int, seed: Any) -> None:
    metrics = {name: {"auc": seed.random()} for name in names}
    settings = CheckpointBlock(keep_last=last, keep_every=every, keep_best=best, best_metric="auc", best_mode="max")
    kept = kept_by(settings, metrics)
    assert set(sorted(names)[-last:]) <= kept
    multiples = range(every, 51, every) if every else ()
    after = {m: min((name for name in names if position_of(name) >= m), default=None) for m in multiples}
    assert {name for name in after.values() if name is not None} <= kept
    highest = sorted((metrics[name]["auc"] for name in names), reverse=True)[:best]
    assert sorted((metrics[name]["auc"] for name in kept), reverse=True)[:best] == highest
    assert len(kept) <= last + best + len(multiples)


class FakeTime(threading.Event):
    """A clock that advances only during waits."""

    now = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return False


def test_a_failing_storage_is_tried_for_a_while_and_no_longer() -> None:
    time, tries = FakeTime(), []

    def fail() -> None:
        tries.append(time.now)
        raise StorageError("disk full")

    with pytest.raises(StorageError, match="disk full"):
        retried(fail, 100.0, time, lambda: time.now)
    assert tries == [0, 1, 3, 7, 15, 31, 61, 91]


@pytest.mark.parametrize("now", [-5.0, 0.0, 1.8e9, 2.0**32, 1e13])
def test_a_checkpoint_is_found_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: float
) -> None:
    monkeypatch.setattr("time.time", lambda: now)
    storage, name = Storage.at(tmp_path), name_of(100, make_token())
    storage.publish(f"{FOLDER}/{name}/manifest.json", b"{}")
    assert CheckpointStore(storage).finished() == [name]


@pytest.mark.parametrize("error", [DamagedError("a pipe"), LostRunError("taken over")])
def test_what_no_time_mends_is_not_tried_again(error: StorageError) -> None:
    time, tries = FakeTime(), []

    def fail() -> None:
        tries.append(time.now)
        raise error

    with pytest.raises(type(error)):
        retried(fail, 100.0, time, lambda: time.now)
    assert tries == [0]


def test_a_storage_that_recovers_is_forgiven_and_a_cancelled_write_ends() -> None:
    time, results = FakeTime(), iter([StorageError("503"), StorageError("503"), None])

    def sometimes() -> str:
        if (error := next(results)) is not None:
            raise error
        return "written"

    assert retried(sometimes, 100.0, time, lambda: time.now) == "written"
    time.set()
    with pytest.raises(Cancelled):
        retried(sometimes, 100.0, time, lambda: time.now)
