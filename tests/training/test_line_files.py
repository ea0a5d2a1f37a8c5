import json

import pytest

from ebmscale.errors import StorageError
from ebmscale.storage import Storage
from ebmscale.training import line_files
from ebmscale.training.line_files import LineFile

NAME = "metrics.jsonl"


def lines(*positions: int) -> bytes:
    return b"".join(json.dumps({"samples_seen": one, "loss": "x" * 20}).encode() + b"\n" for one in positions)


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(line_files, "SEGMENT_BYTES", 200)
    monkeypatch.setattr(line_files, "BLOCK_BYTES", 130)
    return Storage.at(tmp_path / "run" if request.param == "folder" else f"memory://line-files/{tmp_path.name}")


def positions(storage: Storage) -> list[int]:
    text = b"".join(LineFile(storage, NAME).texts())
    return [json.loads(line)["samples_seen"] for line in text.splitlines()]


@pytest.mark.parametrize("num", [0, 1, 3, 4, 5, 8, 9, 40, 100])
def test_what_was_appended_is_read_by_anyone_and_continued(storage: Storage, num: int) -> None:
    file = LineFile(storage, NAME)
    for number in range(num):
        file.append(lines(number))
    assert positions(storage) == list(range(num))
    LineFile(storage, NAME).append(lines(num, num + 1))
    assert positions(storage) == list(range(num + 2))


@pytest.mark.parametrize("position", [-1, 0, 1, 7, 17, 58, 59, 60])
@pytest.mark.parametrize("torn", [b"", b'{"samples_seen": 4', b"\n", b"{}\n", b'{"samples_seen": true}\n'])
def test_lines_after_a_position_are_cut_off(storage: Storage, position: int, torn: bytes) -> None:
    file = LineFile(storage, NAME)
    for number in range(0, 60, 2):
        file.append(lines(number, number + 1))
    file.append(torn)
    file = LineFile(storage, NAME)
    file.cut(position)
    assert positions(storage) == list(range(min(position + 1, 60)))
    file.append(lines(100))
    assert positions(storage)[-1] == 100


def test_nothing_to_cut(storage: Storage) -> None:
    LineFile(storage, NAME).cut(7)
    assert positions(storage) == []


def test_a_write_costs_what_is_new(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.at(f"memory://line-files/{tmp_path.name}")
    written: list[int] = []
    publish = Storage.publish
    monkeypatch.setattr(
        Storage,
        "publish",
        lambda self, path, data, *rest: (written.append(len(data)), publish(self, path, data, *rest)),
    )
    monkeypatch.setattr(line_files, "SEGMENT_BYTES", 2000)
    file = LineFile(storage, NAME)
    for number in range(1000):
        file.append(lines(number))
    assert max(written) < 2000 + len(lines(1000))
    asked: list[str] = []
    exists = Storage.exists
    monkeypatch.setattr(Storage, "exists", lambda self, path="": asked.append(path) or exists(self, path))
    file = LineFile(storage, NAME)
    file.cut(998)
    file.append(lines(1001))
    assert len(asked) < 20  # of about 25 segments
    assert positions(storage) == [*range(999), 1001]


def test_a_crash_between_two_writes_doubles_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME still has lines that a segment has."""
    storage = Storage.at(f"memory://line-files/{tmp_path.name}")
    monkeypatch.setattr(line_files, "SEGMENT_BYTES", 200)
    publish = Storage.publish

    def fail(self: Storage, path: str, data: bytes, *rest: bool) -> None:
        if path == NAME and not data:
            raise StorageError("gone")
        publish(self, path, data, *rest)

    file = LineFile(storage, NAME)
    monkeypatch.setattr(Storage, "publish", fail)
    for number in range(5):
        file.append(lines(number))
    assert storage.exists(f"{NAME}.000000")
    assert storage.read_bytes(NAME)
    assert positions(storage) == list(range(5))
    LineFile(storage, NAME).append(lines(5))
    assert positions(storage) == list(range(6))
    LineFile(storage, NAME).cut(3)
    assert positions(storage) == list(range(4))
