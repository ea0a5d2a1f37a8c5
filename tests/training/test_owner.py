"""One owner at a time, with real processes and real storages."""

import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebmscale.errors import LostRunError
from ebmscale.storage import Storage
from ebmscale.training import claim
from ebmscale.training.claim import Launch
from ebmscale.training.owner import FOLDER, Lease

WORKER = str(Path(__file__).with_name("owner_worker.py"))
CLAIM_2 = f"{FOLDER}/000002.json"


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "run" if request.param == "folder" else f"memory://owners/{uuid.uuid4().hex}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the waits for a living or a dead owner to almost zero."""
    monkeypatch.setattr(claim, "PATIENCE_S", 0.05)
    monkeypatch.setattr(claim, "LEASE_S", 0.3)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a process is alive is unknown."""
    monkeypatch.setattr(claim.Claim, "is_alive", lambda self, url: None)


@pytest.fixture
def stopped_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners whose counter never changes, as that of a stopped process."""
    monkeypatch.setattr(Lease, "_beat", lambda self: self._over.wait())


@pytest.fixture
def start() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that wants a folder."""
    processes = []

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, WORKER, str(folder)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_living_owner_is_named_and_its_folder_refused(storage: Storage, quick: None) -> None:
    with Lease(storage) as first:
        first.take()
        second = Lease(storage)
        with pytest.raises(LostRunError, match=rf"is being written by {first.claim}; wait until it has ended"):
            second.take()
        first.check()
    second.take()  # without a message: the first one has left
    second.check()
    second.release()


def test_a_living_owner_elsewhere_is_seen_by_its_beats(storage: Storage, elsewhere: None, monkeypatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE_S", 0.05)
    monkeypatch.setattr("ebmscale.training.owner.BEAT_S", 0.05)
    with Lease(storage) as first:
        first.take()
        with pytest.raises(LostRunError, match="is being written by"):
            Lease(storage).take()


def test_two_processes_and_a_kill(tmp_path: Path, start, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    """The second one is refused; after `kill -9` of the first the folder is free at once, without a wait."""
    first = start(tmp_path)
    assert first.stdout.readline() == "owns\n"
    with pytest.raises(LostRunError, match=f"is being written by process {first.pid} of "):
        Lease(tmp_path_storage := Storage.at(tmp_path)).take()
    caplog.clear()
    first.kill()
    first.wait()
    with Lease(tmp_path_storage) as second:
        second.take()
        assert caplog.text == ""
        second.check()


def test_of_many_that_come_at_once_one_gets_it(storage: Storage, quick: None) -> None:
    together, owners, refused = threading.Barrier(8), [], []

    def want() -> None:
        lease = Lease(storage)
        together.wait()
        try:
            lease.take()
            owners.append(lease)
        except LostRunError:
            refused.append(lease)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = owners
    assert len(refused) == 7
    owner.check()
    owner.release()


def test_an_owner_that_was_thought_dead_is_told_by_whom_and_leaves_no_trace(
    storage: Storage, quick: None, elsewhere: None, stopped_heart: None, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Lease(storage), Lease(storage)
    first.take()
    second.take()
    assert f"is written by {first.claim}; waiting up to" in caplog.text
    with pytest.raises(LostRunError, match=rf"was taken over by {second.claim}; this process stops and writes nothing"):
        first.check()
    first.release()
    second.check()
    assert storage.list(FOLDER) == ["000001.json", "000002.json"]  # no word that the folder is free
    second.release()


def test_the_next_attempt_of_a_launch_takes_over_at_once(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Lease(storage, Launch("job", 1)), Lease(storage, Launch("job", 2))
    first.take()
    second.take()
    assert caplog.text == ""
    with pytest.raises(LostRunError, match="taken over"):
        first.check()
    first.release()
    second.release()


def test_a_folder_that_was_deleted_is_noticed_and_not_made_again(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "run")
    lease = Lease(storage)
    lease.take()
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.raises(LostRunError, match="was deleted while this process was writing it"):
        lease.check()
    lease.release()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_deleted_and_begun_anew_is_the_others(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "run")
    first, second = Lease(storage), Lease(storage)
    first.take()
    (tmp_path / "run").rename(tmp_path / "gone")
    second.take()
    with pytest.raises(LostRunError, match="was deleted"):
        first.check()
    first.release()
    second.check()
    second.release()


def test_a_storage_that_cannot_compare_has_one_owner_all_the_same(
    storage: Storage, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If both write the same number, the last one owns the folder, and the first one notices it."""
    first, second = Lease(storage), Lease(storage)
    first.take()
    storage.publish(f"{FOLDER}/000001.json", second.claim.model_dump_json().encode())
    with pytest.raises(LostRunError):
        first.check()
    first.release()


@pytest.mark.parametrize("record", [b"[", b"\xff", b"{}"])
def test_a_record_that_cannot_be_read_is_waited_for(storage: Storage, quick: None, record: bytes) -> None:
    storage.publish(f"{FOLDER}/000001.json", record)
    with Lease(storage) as lease:
        lease.take()
        assert storage.exists(CLAIM_2)


def test_a_listing_that_shows_nothing_gives_no_second_owner(
    storage: Storage, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        with Lease(storage) as before:
            before.take()
    with Lease(storage) as owner:
        owner.take()
        monkeypatch.setattr(Storage, "list", lambda self, path="": [])
        with pytest.raises(LostRunError, match="is being written by"):
            Lease(storage).take()
        owner.check()


def test_a_wait_ends_by_what_its_check_raises(storage: Storage) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with Lease(storage) as first:
        first.take()
        with pytest.raises(KeyboardInterrupt):
            Lease(storage).take(stop)
