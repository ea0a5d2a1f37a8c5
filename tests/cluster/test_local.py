"""`cluster/local`: a real cluster that only its owner reaches, a head that comes back, and folders not its own."""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.local_cluster import PATIENCE_S, ROOT, SCRIPT, LocalCluster

LOOK = """
import sys
from ray._raylet import GcsClient
print("OPEN", sum(node.state == 0 for node in GcsClient(address=sys.argv[1]).get_all_node_info().values()))
"""
JOBS = """
import sys
from ray.job_submission import JobSubmissionClient
print("OPEN", len(JobSubmissionClient(sys.argv[1]).list_jobs()))
"""

JOIN = """
import sys
from ebmscale.config import RayBlock
from ebmscale.errors import ConfigError
from ebmscale.runtime.ray_session import ray_session
try:
    with ray_session(RayBlock(num_workers=1, address=sys.argv[1])) as ray:
        print("OPEN", ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()))
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, as the sockets in it need."""
    above = Path(tempfile.mkdtemp(prefix="ebm", dir="/tmp"))
    yield above / "c"
    shutil.rmtree(above, ignore_errors=True)


@pytest.fixture
def cluster(folder: Path) -> Iterator[LocalCluster]:
    pytest.importorskip("ray.dashboard.modules.job.sdk", reason="needs ray[default]")
    one = LocalCluster(folder)
    yield one
    one.down()


def call(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), "--dir", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def ask(code: str, address: str, **variables: str) -> str:
    """What a stranger's process gets, or one with these variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code, address]
    done = subprocess.run(
        command, env=environment | variables, text=True, capture_output=True, timeout=PATIENCE_S, check=False
    )
    return done.stdout


def listening(cluster: LocalCluster) -> set[str]:
    """The addresses that the cluster's processes listen on."""
    psutil = pytest.importorskip("psutil")
    found = set()
    for number in cluster.processes(""):
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in psutil.Process(number).net_connections("tcp"):
                if one.status == "LISTEN":
                    found.add(one.laddr.ip.removeprefix("::ffff:"))
    return found


@pytest.mark.ray
def test_a_cluster_on_the_machines_network_is_its_owners_alone(cluster: LocalCluster) -> None:
    cluster.up(1, "--cpus", "1", "--network", "host")
    assert listening(cluster) == {"127.0.0.1"}
    token = cluster.folder / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(cluster.folder.stat().st_mode) == 0o700
    assert token.read_text() not in call(cluster.folder, "status").stdout
    names = cluster.exported
    assert ask(LOOK, cluster.address, RAY_AUTH_MODE="disabled") == ""
    assert ask(LOOK, cluster.address, **names) == "OPEN 1\n"
    assert ask(JOBS, cluster.jobs_url, RAY_AUTH_MODE="disabled") == ""
    assert ask(JOBS, cluster.jobs_url, **names) == "OPEN 0\n"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("network", ["host", "auto"])
def test_a_killed_head_comes_back_at_once_while_another_node_lives(cluster: LocalCluster, network: str) -> None:
    cluster.up(2, "--cpus", "1", "--network", network)
    names = cluster.exported
    assert ask(LOOK, cluster.address, RAY_AUTH_MODE="disabled") == ""
    refused = call(cluster.folder, "restart-head")
    assert refused.returncode == 1
    assert "lives and answers" in refused.stderr
    for kill in ("node", "gcs_server", "raylet"):
        if kill == "node":
            cluster.kill(0)
        else:
            for number in cluster.processes(""):
                with contextlib.suppress(OSError):
                    name = Path(f"/proc/{number}/comm").read_text().strip()
                    if name == kill and f":{0}\0".encode() in Path(f"/proc/{number}/environ").read_bytes():
                        os.kill(number, signal.SIGKILL)
        cluster.restart_head()
        assert ask(LOOK, cluster.address, **names) != "", kill
    assert ask(LOOK, cluster.address, RAY_AUTH_MODE="disabled") == ""


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_finds_the_token_or_is_told_to(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.up(1, "--cpus", "1", "--network", "host")
    address, path = cluster.address, {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    token = {"RAY_AUTH_TOKEN_PATH": str(cluster.folder / "token")}
    assert ask(JOIN, address, **path, **token) == "OPEN 1\n"
    assert "refused the authentication token" in ask(JOIN, address, **path)
    assert "refused the authentication token" in ask(JOIN, address, **path, **token, RAY_AUTH_MODE="disabled")
    (tmp_path / ".ray").mkdir()
    shutil.copy(cluster.folder / "token", tmp_path / ".ray" / "auth_token")
    assert ask(JOIN, address, **path) == "OPEN 1\n"


def test_what_a_lost_cluster_left_is_no_cluster(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "cluster.json").write_text('{"network": "host", "next": 2, "port": 1, "dashboard": 2}')
    (folder / "token").write_text("old")
    done = call(folder, "up", "--network", "host", "--cpus", "-1")  # which Ray refuses
    assert "is up already" not in done.stderr
    assert "Node 0 did not start" in done.stderr
    assert "Traceback" not in done.stderr.partition("says:")[0]
    assert not folder.exists()


def test_a_folder_with_other_files_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    done = call(folder, "up", "--network", "host")
    assert done.returncode == 1
    assert "holds other files" in done.stderr
    call(folder, "down")
    assert (folder / "thesis.tex").read_text() == "years"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    for words in (["up", "--network", "host"], ["status"], ["run", "true"]):
        done = call(folder, *words)
        assert done.returncode == 1
        assert "belongs to another user" in done.stderr


def test_a_link_to_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.symlink_to(tmp_path)
    assert "belongs to another user" in call(folder, "up", "--network", "host").stderr
