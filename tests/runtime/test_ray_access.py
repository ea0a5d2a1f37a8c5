"""Who may use a Ray: its token's file is its owner's alone, and a Ray of one run listens on this machine alone."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ebmscale.errors import ConfigError
from ebmscale.runtime.doctor import examine
from ebmscale.runtime.ray_access import (
    MODE,
    TOKEN,
    TOKEN_PATH,
    answer_refusal,
    default_file,
    ensure_token,
    exposed_file,
    token_place,
)
from tests.runtime.local_cluster import PATIENCE_S, ROOT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (MODE, TOKEN, TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_its_owner_alone(home: Path) -> None:
    before = os.umask(0)
    try:
        ensure_token()
    finally:
        os.umask(before)
    assert mode(default_file()) == 0o600
    assert mode(default_file().parent) == 0o700
    assert list(default_file().parent.iterdir()) == [default_file()]
    text = default_file().read_text()
    assert len(text) == 64
    ensure_token()
    assert default_file().read_text() == text


def test_a_token_that_ray_left_open_is_closed(home: Path) -> None:
    default_file().parent.mkdir()
    default_file().write_text("t" * 64)
    default_file().chmod(0o644)
    assert exposed_file() == default_file()
    ensure_token()
    assert mode(default_file()) == 0o600
    assert default_file().read_text() == "t" * 64


def test_all_that_start_at_once_have_one_token(home: Path) -> None:
    found: list[str] = []
    ready = threading.Barrier(8)

    def start() -> None:
        ready.wait()
        ensure_token()
        found.append(default_file().read_text())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {default_file().read_text()}


def test_a_token_that_is_given_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = home / "mine"
    given.write_text("t" * 64)
    monkeypatch.setenv(TOKEN_PATH, str(given))
    assert token_place() == str(given)
    monkeypatch.setenv(TOKEN, "t" * 64)
    assert token_place() == TOKEN
    ensure_token()
    assert not default_file().exists()


def test_a_home_that_cannot_be_written_is_one_sentence(home: Path) -> None:
    (home / ".ray").write_text("a file is in the way")
    with pytest.raises(ConfigError, match=f"cannot be written to .*{TOKEN_PATH}"):
        ensure_token()


def test_a_refusal_is_answered_where_a_token_is_and_nobody_forbids_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not answer_refusal()
    ensure_token()
    monkeypatch.setenv(MODE, "disabled")
    assert not answer_refusal()
    assert os.environ[MODE] == "disabled"


def test_the_doctor_finds_the_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line() -> tuple[bool | None, str]:
        return next((one.ok, one.detail) for one in examine() if one.what == "Ray's token")

    assert line()[0] is None
    assert TOKEN_PATH in line()[1]
    ensure_token()
    assert line() == (True, f"in {default_file()}")
    default_file().chmod(0o640)
    assert line() == (False, f"others on this machine can read {default_file()}: chmod 600 {default_file()}")


SESSION = """
import contextlib, os, psutil
from ebmscale.config import RayBlock
from ebmscale.runtime.ray_access import MODE
from ebmscale.runtime.ray_session import ray_session
with ray_session(RayBlock(num_workers=1)) as ray:
    print("address", ray.get_runtime_context().gcs_address)
    print("worker", ray.get(ray.remote(ray.util.get_node_ip_address).remote()))
    for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for socket in one.net_connections("tcp"):
                if socket.status == "LISTEN":
                    print("listens", socket.laddr.ip)
    print("ready", flush=True)
    input()
print("mode", os.environ.get(MODE))
"""
STRANGER = """
import sys
from ray._raylet import GcsClient
print("OPEN", len(GcsClient(address=sys.argv[1]).get_all_node_info()))
"""


@pytest.mark.ray
def test_the_ray_of_a_run_listens_on_this_machine_alone_and_asks_for_the_token(home: Path) -> None:
    pytest.importorskip("ray")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), MODE: "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", SESSION], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        said: list[str] = []
        for line in session.stdout:
            said.append(line.strip())
            if said[-1] == "ready":
                break
        assert said[-1:] == ["ready"], said
        address = said[0].removeprefix("address ")
        answers = [
            subprocess.run(
                [sys.executable, "-c", STRANGER, address], env=environment | more, text=True, capture_output=True,
                timeout=PATIENCE_S, check=False,
            )
            for more in ({MODE: "disabled"}, {MODE: "token"})
        ]  # fmt: skip
        session.stdin.write("\n")
        session.stdin.flush()
        rest = session.stdout.read()
    assert address.startswith("127.0.0.1:")
    assert said[1] == "worker 127.0.0.1"
    listening = {line.removeprefix("listens ").removeprefix("::ffff:") for line in said if line.startswith("listens")}
    assert listening == {"127.0.0.1"}
    assert "OPEN" not in answers[0].stdout
    assert "OPEN 1" in answers[1].stdout, answers[1].stderr
    assert "mode disabled" in rest
    assert mode(default_file()) == 0o600
