"""Names are names: what is done to one never touches another, whatever characters both have."""

import functools
import http.server
import os
import threading
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebmscale.errors import StorageError
from ebmscale.storage import Range, Storage

CHARACTERS = "ab1[]?*!%#:;~+&=@,'\"\\$(){}<>|^ .-é日\u0301"
NAMES = st.text(CHARACTERS, min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..") and not (name.startswith(".") and name.endswith(".tmp"))
)
PAIRS = st.lists(NAMES, min_size=2, max_size=2, unique=True)
ODD = ["a%20b.tar", "q#1.tar", "a b", "what?.txt", "[12]", "*", "a::b", "x&y=1", "é日", "%", "a+b", "100%25"]

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["folder", "memory"])
def storage(request, tmp_path):
    if request.param == "folder":
        yield Storage.at(tmp_path)
    else:
        yield (storage := Storage.at(f"memory://{uuid.uuid4().hex}/[r]?*"))
        storage.delete("")


@few
@given(names=PAIRS)
def test_files_do_not_touch_each_other(storage, names):
    one, other = names
    place = storage.child(uuid.uuid4().hex)
    place.publish(one, b"one")
    assert not place.exists(other)
    place.publish(other, b"other")
    assert place.list() == sorted(names)
    assert place.read_bytes(one) == b"one"
    assert place.read_ranges([Range(one, 0, 3), Range(other, 1, 2)]) == [b"one", b"th"]
    assert (place.size(one), place.exists(one)) == (3, True)
    place.delete(one)
    assert place.list() == [other]
    assert place.read_bytes(other) == b"other"


@few
@given(names=PAIRS, inner=NAMES)
def test_folders_do_not_touch_each_other(storage, names, inner):
    one, other = names
    place = storage.child(uuid.uuid4().hex)
    for name in names:
        place.child(name).publish(f"{inner}/{inner}", name.encode())
    assert place.child(one).child(inner).read_text(inner) == one
    assert place.child(one).list() == [inner]
    place.delete(one)
    assert place.list() == [other]
    assert place.read_text(f"{other}/{inner}/{inner}") == other
    place.child(other).delete(inner)
    assert place.child(other).list() == []


@pytest.fixture
def served(tmp_path):
    """A folder and its address by HTTP."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=os.fspath(tmp_path))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Storage.at(tmp_path), Storage.at(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_names_over_http_are_those_of_the_folder(served):
    here, there = served
    for name in ODD:
        here.publish(f"set [1]/{name}", name.encode())
    place = there.child("set [1]")
    assert place.list() == here.list("set [1]") == sorted(ODD)
    for name in ODD:
        assert place.read_text(name) == name
        assert place.size(name) == len(name.encode())
        assert place.exists(name)
        assert not place.exists(f"{name}0")


def test_the_query_of_an_address_goes_with_every_request(served):
    here, there = served
    here.publish("a/b#c", b"1")
    storage = Storage.at(f"{there.url}/a?sig=PASSW0RD")
    assert storage.read_bytes("b#c") == b"1"
    assert storage.url_of("b#c").real == f"{there.url}/a/b%23c?sig=PASSW0RD"
    with pytest.raises(StorageError) as error:
        storage.read_bytes("gone")
    assert "PASSW0RD" not in str(error.value)


def test_names_that_are_not_utf8(tmp_path):
    storage = Storage.at(tmp_path)
    storage.publish("a\udcff", b"1")
    assert storage.list() == ["a\udcff"]
    assert storage.read_bytes("a\udcff") == b"1"
    assert Storage.at("http://host").url_of("a\udcff") == "http://host/a%FF"
    assert str(storage.url_of("a\udcff")).encode().endswith(rb"a\udcff")
    with pytest.raises(StorageError, match=r"a\\udcfe: it does not exist") as error:
        storage.read_bytes("a\udcfe")
    str(error.value).encode()
    storage.delete("a\udcff")
    assert storage.list() == []
    with pytest.raises(StorageError, match="its name is not UTF-8; give it another name"):
        Storage.at("memory://x").publish("a\udcff", b"1")


@pytest.mark.parametrize("name", ["a/../../b", "..", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    for storage in (Storage.at(tmp_path), Storage.at("memory://x")):
        with pytest.raises(StorageError, match="give it another name"):
            storage.read_bytes(name)


def test_a_version_of_s3_is_no_name():
    with pytest.raises(StorageError, match="for a version"):
        Storage.at("s3://bucket").delete("a?versionId=1")
