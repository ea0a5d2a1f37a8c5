import os
import pickle
import subprocess
import sys
import uuid

import pytest

from ebmscale.errors import StorageError
from ebmscale.storage import Storage


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
    storage.probe()
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
    with pytest.raises(StorageError, match="No space left"):
        storage.publish("f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert storage.read_bytes("f") == b"old"


def test_list_does_not_show_what_a_killed_publish_left(tmp_path):
    (tmp_path / ".f.123.tmp").write_bytes(b"half")
    assert Storage.at(tmp_path).list() == []


def test_probe_says_what_to_do_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot be written to .*; choose another storage\.url"):
        Storage.at(tmp_path / "file").probe()


@pytest.mark.parametrize("url", ["nosuch://bucket", "nosuch://"])
def test_an_unknown_kind_of_address_is_a_storage_error(url):
    with pytest.raises(StorageError, match="knows no such kind of address"):
        Storage.at(url).read_bytes("f")
    with pytest.raises(StorageError, match="Protocol not known"):
        Storage.at(url).probe()


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
