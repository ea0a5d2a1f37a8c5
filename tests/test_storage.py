import errno
import functools
import http.server
import io
import os
import pickle
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from ebmscale.config import StorageBlock
from ebmscale.errors import DamagedError, StorageError
from ebmscale.storage import Range, Storage, open_storage
from ebmscale.storage_probe import probe
from tests.irregular import KINDS, make_irregular


@pytest.fixture(params=["folder", "file", "memory"])
def storage(request, tmp_path):
    if request.param == "memory":
        yield (storage := Storage.at(f"memory://{uuid.uuid4().hex}/run"))
        storage.delete("")
    else:
        yield Storage.at(f"file://{tmp_path}/run" if request.param == "file" else tmp_path / "run")


def test_what_is_published_is_read_back_whole_or_in_part(storage):
    storage.publish("a/b.bin", b"0123456789")
    assert storage.read_bytes("a/b.bin") == b"0123456789"
    assert storage.read_text("a/b.bin") == "0123456789"
    assert storage.read_range("a/b.bin", 2, 3) == b"234"
    assert storage.read_range("a/b.bin", 8, 5) == b"89"
    assert storage.read_range("a/b.bin", 20, 5) == b""
    assert storage.size("a/b.bin") == 10
    assert storage.child("a").read_bytes("b.bin") == b"0123456789"


def test_list_exists_and_delete_agree(storage):
    assert storage.list() == []
    assert not storage.exists()
    for path in ("x", "a/one", "a/two", "a/deep/er"):
        storage.publish(path, b"")
    assert storage.list() == ["a", "x"]
    assert storage.list("a") == ["deep", "one", "two"]
    assert storage.exists("a")
    assert storage.exists("a/deep/er")
    assert not storage.exists("a/three")
    assert not storage.exists("x/below-a-file")
    storage.delete("a")
    storage.delete("never-was")
    assert storage.list() == ["x"]


def test_publish_replaces_and_append_adds(storage):
    storage.publish("f", b"old and long")
    storage.publish("f", b"new")
    assert storage.read_bytes("f") == b"new"
    storage.append("logs/events", "1\n")
    storage.append("logs/events", "ä\n")
    assert storage.read_text("logs/events") == "1\nä\n"


def test_probe_leaves_nothing_behind(storage):
    probe(storage)
    assert storage.list() == []


def test_a_missing_file_is_an_error_that_names_its_address(storage):
    for read in (storage.read_bytes, storage.size):
        with pytest.raises(StorageError, match="does not exist") as error:
            read("gone")
        assert storage.url_of("gone") in str(error.value)


def test_a_publish_that_fails_midway_leaves_the_old_content_alone(tmp_path, monkeypatch):
    storage = Storage.at(tmp_path)
    storage.publish("f", b"old")

    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"No space left on device\); free some space there\."):
        storage.publish("f", b"new")
    with pytest.raises(StorageError, match=r"choose another --out or free some space there\."):
        probe(storage, "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert storage.read_bytes("f") == b"old"


def test_list_does_not_show_what_a_killed_publish_left(tmp_path):
    (tmp_path / ".f.123.tmp").write_bytes(b"half")
    assert Storage.at(tmp_path).list() == []


def test_probe_says_what_to_do_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot be written to .*; choose another storage\.url"):
        probe(Storage.at(tmp_path / "file"))


@pytest.mark.parametrize("url", ["nosuch://bucket", "nosuch://"])
def test_an_unknown_kind_of_address_is_a_storage_error(url):
    with pytest.raises(StorageError, match="knows no such kind of address"):
        Storage.at(url).read_bytes("f")
    with pytest.raises(StorageError, match="Protocol not known"):
        probe(Storage.at(url))


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Storage.at("runs/").url == str(tmp_path / "runs")
    assert Storage.at("runs").local_path("a/b") == tmp_path / "runs" / "a" / "b"
    assert Storage.at("memory://runs/").url_of("a") == "memory://runs/a"
    assert Storage.at("memory://").url_of("a") == "memory://a"
    assert Storage.at("memory://runs").local_path() is None
    assert Storage.at("s3://bucket").child("x") == Storage.at("s3://bucket/x")


def test_options_are_kept_and_never_shown():
    storage = Storage.at("s3://bucket", key="AKIA", secret="hush", client_kwargs={"endpoint_url": "http://x"})
    assert storage.child("run").options["secret"] == "hush"
    assert "hush" not in f"{storage} {storage!r}"
    assert hash(storage) == hash(pickle.loads(pickle.dumps(storage)))


def test_another_process_uses_it_and_its_writes_are_seen_at_once(tmp_path):
    storage = Storage.at(tmp_path)
    assert storage.list() == []
    code = "import pickle, sys; pickle.load(sys.stdin.buffer).publish('theirs', b'1')"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(storage), check=True, cwd=os.getcwd())
    assert storage.list() == ["theirs"]


class FailingFileSystem(fsspec.AbstractFileSystem):
    """Answers with the failures in `script` first, then with ten digits."""

    protocol = "failing"
    script: ClassVar[list] = []

    def info(self, path, **_):
        return {"name": path, "size": 10, "type": "file"}

    def cat_file(self, path, start=None, end=None, **_):
        failure = self.script.pop(0) if self.script else None
        if isinstance(failure, Exception):
            raise failure
        return failure or b"0123456789"[start:end]


@pytest.fixture
def failing(monkeypatch):
    """A function that sets the failures to come and gives the storage."""
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    monkeypatch.setattr("ebmscale.filesystem.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("ebmscale.filesystem.JITTER_S", 0.001)

    def script(*failures):
        FailingFileSystem.script = list(failures)
        return Storage.at("failing://place", retries=3)

    return script


def client_error(name, module="botocore.exceptions", **attributes):
    """An exception as a client raises it, which is not an OSError."""
    return type(name, (Exception,), {"__module__": module} | attributes)("it said so")


def translated(status, code):
    """An OSError as s3fs makes it of an answer."""
    error = OSError(16, "Please reduce your request rate")
    error.__cause__ = client_error(
        "ClientError", response={"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    )
    return error


PASSING = [
    TimeoutError("slow"),
    ConnectionResetError(),
    b"0",  # a truncated body
    translated(503, "SlowDown"),
    translated(500, "InternalError"),
    client_error("EndpointConnectionError"),
    client_error("ClientPayloadError", "aiohttp.client_exceptions"),
    client_error("ClientResponseError", "aiohttp.client_exceptions", status=502),
]


@pytest.mark.parametrize("failure", PASSING, ids=lambda failure: type(failure).__name__)
def test_what_may_pass_is_tried_again(failing, failure):
    assert failing(failure, failure, failure).read_range("f", 2, 5) == b"23456"


@pytest.mark.parametrize("failure", PASSING, ids=lambda failure: type(failure).__name__)
def test_what_does_not_pass_ends_in_one_error(failing, failure):
    storage = failing(*[failure] * 4)
    with pytest.raises(StorageError, match=r"^Cannot read bytes 2 to 6 of failing://place/f \(.+, 4 tries\); .+\.$"):
        storage.read_range("f", 2, 5)
    assert not FailingFileSystem.script


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (client_error("NoCredentialsError"), r"set AWS_ACCESS_KEY_ID .*`anonymous: true`"),
        (translated(403, "AccessDenied"), "reduce"),
        (PermissionError("Forbidden"), "credentials"),
        (FileNotFoundError(), "it does not exist"),
        (NotImplementedError(), "can only be read"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(failing, failure, message):
    storage = failing(failure, b"never")
    with pytest.raises(StorageError, match=message):
        storage.read_range("f", 0, 5)
    assert FailingFileSystem.script == [b"never"]


def test_mistakes_of_the_program_stay_what_they_are(failing):
    with pytest.raises(KeyError):
        failing(KeyError("x")).read_range("f", 0, 5)


def test_only_the_ranges_that_failed_are_asked_again(failing):
    ranges = [Range("f", start, 3) for start in range(6)]
    storage = failing(None, TimeoutError(), None, b"x")
    assert storage.read_ranges(ranges) == [b"0123456789"[start : start + 3] for start in range(6)]


def test_a_server_without_ranges_is_named(failing):
    with pytest.raises(StorageError, match="serves no byte ranges"):
        failing(b"0123456789").read_range("f", 2, 5)


def test_a_block_of_the_configuration_becomes_a_storage():
    block = StorageBlock(url="s3://bucket/runs/", endpoint_url="http://here", anonymous=True, retries=2)
    assert open_storage(block) == Storage.at("s3://bucket/runs", endpoint_url="http://here", anon=True, retries=2)
    assert open_storage(block.model_copy(update={"url": "memory://x"})).options == {}


def test_http_is_read_only(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        storage = Storage.at(f"http://127.0.0.1:{server.server_address[1]}")
        assert storage.read_bytes("f") == b"0123456789"
        assert (storage.size("f"), storage.exists("f"), storage.exists("g")) == (10, True, False)
        with pytest.raises(StorageError, match="can only be read"):
            storage.publish("f", b"")
        server.shutdown()


def test_text_that_is_none_gets_a_sentence(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff")
    with pytest.raises(StorageError, match=r"x\.yaml is damaged: it is not UTF-8 text"):
        Storage.at(tmp_path).read_text("x.yaml")


def test_what_killed_writers_left_behind_is_swept(tmp_path):
    storage = Storage.at(tmp_path)
    storage.publish("kept", b"1")
    (tmp_path / ".kept.0123.tmp").write_bytes(b"half")
    (tmp_path / ".folder.tmp").mkdir()
    storage.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {"kept", ".folder.tmp"}
    Storage.at("memory://nothing-to-sweep").sweep()


def test_a_line_that_does_not_fit_leaves_no_part_of_itself(tmp_path, monkeypatch):
    storage = Storage.at(tmp_path)
    storage.append("log", "first\n")
    real_open = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def truncate(self, size):
            self.file.truncate(size)

        def write(self, data):
            self.file.write(data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, *args, **options: Full(real_open(self, *args, **options)))
    with pytest.raises(StorageError, match="No space left"):
        storage.append("log", "second\n")
    monkeypatch.undo()
    assert storage.read_text("log") == "first\n"


def test_create_writes_only_where_nothing_is(storage):
    storage.create("a/f", b"first")
    storage.create("a/f", b"second")
    assert storage.read_bytes("a/f") == b"first"
    assert storage.list("a") == ["f"]
    assert storage.local_path("a") is None or len(os.listdir(storage.local_path("a"))) == 1


def test_create_says_that_a_file_lies_where_its_folder_should_be(tmp_path):
    (tmp_path / "owner").touch()
    with pytest.raises(StorageError, match="owner is a file where a folder should be"):
        Storage.at(tmp_path).create("owner/000001.json", b"1")


def test_of_many_that_create_a_file_one_does(tmp_path):
    storage, together = Storage.at(tmp_path), threading.Barrier(8)

    def create(number):
        together.wait()
        storage.create("f", str(number).encode() * 1000)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(storage.read_text("f"))) == 1
    assert os.listdir(tmp_path) == ["f"]


def test_create_does_without_hard_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    storage = Storage.at(tmp_path)
    storage.create("f", b"first")
    storage.create("f", b"second")
    assert storage.read_bytes("f") == b"first"


def test_an_append_that_a_full_disk_takes_in_part_leaves_no_half_line(tmp_path, monkeypatch):
    """The system call then gives a smaller number, and no error."""
    storage = Storage.at(tmp_path)
    storage.append("log", "first\n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *args, **how: Partial(io.FileIO(self, "ab")))
        with pytest.raises(StorageError, match="No space left on device"):
            storage.append("log", "second\n")
    storage.append("log", "third\n")
    assert storage.read_text("log") == "first\nthird\n"


class Partial:
    """A file that takes only half of what it is given."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        return self._file.write(data[: len(data) // 2])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_neither_read_nor_appended_to(tmp_path, kind):
    path, storage = tmp_path / "x", Storage.at(tmp_path)
    make_irregular(path, kind)
    for work in (
        lambda: storage.read_bytes("x"),
        lambda: storage.read_range("x", 0, 4),
        lambda: storage.read_ranges([Range("x", 0, 4)]),
        lambda: storage.read_into("x", 0, memoryview(bytearray(4))),
        lambda: storage.append("x", b"1"),
    ):
        with pytest.raises(DamagedError, match=r"x is a .*, but a file is needed\); move it away"):
            work()


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(DamagedError, match=r"x is a folder, but a file is needed\); move it away"):
        Storage.at(tmp_path).publish("x", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
