"""Waits for a storage end: in time, and within a moment of a stop."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import ClassVar

import fsspec
import pytest

from ebmscale.config import parse_config
from ebmscale.errors import Interrupted, StorageError
from ebmscale.stop import StopSignal
from ebmscale.storage import Range, Storage
from ebmscale.training.loop import train
from ebmscale.training.view import View
from ebmscale.world import World
from tests.slow_server import SlowServer

HEARD_S = 5.0
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run in the background
from ebmscale.cli import main
main()
"""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789" * 1000)
    with SlowServer(tmp_path) as server:
        yield server


@pytest.fixture
def hasty(monkeypatch):
    """Time limits for people in a hurry."""
    monkeypatch.setattr("ebmscale.filesystem.REQUEST_S", 0.3)
    monkeypatch.setattr("ebmscale.filesystem.TOTAL_S", 0.5)


class StuckFileSystem(fsspec.AbstractFileSystem):
    """Never answers until it is told to; and is not asynchronous."""

    protocol = "stuck"
    asked: ClassVar = threading.Event()
    released: ClassVar = threading.Event()

    def cat_file(self, path, **_):
        self.asked.set()
        self.released.wait()
        return b"at last"


@pytest.fixture
def stuck():
    fsspec.register_implementation("stuck", StuckFileSystem, clobber=True)
    StuckFileSystem.asked.clear()
    StuckFileSystem.released.clear()
    yield Storage.at("stuck://server/place", retries=0)
    StuckFileSystem.released.set()


READS = {
    "read_bytes": lambda storage: storage.read_bytes("f"),
    "read_range": lambda storage: storage.read_range("f", 0, 1000),
    "read_ranges": lambda storage: storage.read_ranges([Range("f", 0, 10), Range("f", 100, 10)]),
    "list": lambda storage: storage.list(),
}


@pytest.mark.parametrize("mood", ["silent", "dripping"])
@pytest.mark.parametrize("read", READS)
def test_a_server_that_does_not_answer_is_given_up(server, hasty, mood, read):
    server.mood = mood
    with pytest.raises(StorageError, match=r"no complete answer in 0 s"):
        READS[read](Storage.at(server.url))


def test_a_large_file_gets_the_time_that_it_needs(server, hasty, monkeypatch):
    monkeypatch.setattr("ebmscale.filesystem.SLOWEST_BYTES_S", 1000)  # 10 kB may take 10 s
    server.mood = "silent"
    storage = Storage.at(server.url)
    threading.Thread(target=lambda: (server.hung.wait(), setattr(server, "mood", "quick"))).start()
    assert len(storage.read_bytes("f")) == 10_000


def test_a_client_that_is_not_asynchronous_is_given_up(stuck, hasty):
    with pytest.raises(StorageError, match="no complete answer"):
        stuck.read_bytes("f")
    StuckFileSystem.released.set()
    assert stuck.read_bytes("f") == b"at last"


@pytest.mark.parametrize("read", READS)
def test_a_stop_ends_a_wait(server, read):
    server.mood = "silent"
    stop = threading.Event()
    threading.Thread(target=lambda: (server.hung.wait(), stop.set())).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        READS[read](Storage.at(server.url).hearing(stop))
    assert time.monotonic() - began < HEARD_S + 10


def test_a_stop_ends_a_wait_for_other_clients_and_pauses(stuck):
    stop = threading.Event()
    threading.Thread(target=lambda: (StuckFileSystem.asked.wait(), stop.set())).start()
    with pytest.raises(Interrupted):
        stuck.hearing(stop).read_bytes("f")
    with pytest.raises(Interrupted):  # a pause before the next try, and the stop that is there already
        Storage.at("http://127.0.0.1:1", retries=100).hearing(stop).read_bytes("f")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_waits_ends_as_interrupted(server, number):
    server.mood = "dripping"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "inspect", server.url],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_PROXY": "127.0.0.1"},
    )
    assert server.hung.wait(300)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in errors


class Slowing(View):
    """Makes the server silent once the run is open, and asks to stop when something waits for it."""

    def __init__(self, server, stop):
        super().__init__(quiet=True)
        self.server, self.stop = server, stop

    def start(self, run, activity):
        self.server.mood = "silent"
        self.server.hung.clear()
        threading.Thread(target=lambda: (self.server.hung.wait(), self.stop.request("SIGTERM"))).start()


def over_http(tiny_text, digits_url, server):
    return parse_config(tiny_text, [f"data.url={server.url}", "data.format=null", "data.verify=none"])


def test_training_that_waits_for_its_data_saves_and_stops(tiny_text, digits_url):
    stop = StopSignal()
    with SlowServer(digits_url) as server:
        config = over_http(tiny_text, digits_url, server)
        with pytest.raises(Interrupted, match=r"Stopped by SIGTERM; saved at 0 of 3,200 samples"):
            train(config, Slowing(server, stop), World.alone(), stop)
    folder = Storage.at(config.storage.url).child("tiny/checkpoints")
    assert len(folder.list()) == 1


def test_opening_that_waits_for_its_data_stops(tiny_text, digits_url):
    stop = StopSignal()
    with SlowServer(digits_url) as server:
        server.mood = "silent"
        threading.Thread(target=lambda: (server.hung.wait(), stop.request("SIGTERM"))).start()
        with pytest.raises(Interrupted, match="before training began"):
            train(over_http(tiny_text, digits_url, server), View(quiet=True), World.alone(), stop)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_stays_on_the_web(server, target):
    server.mood = target
    for read in (lambda storage: storage.read_bytes("f"), lambda storage: storage.exists("f")):
        with pytest.raises(StorageError, match="redirects to an address that is not http"):
            read(Storage.at(server.url, retries=0))
