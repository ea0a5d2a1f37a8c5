"""Runs as jobs: sent over HTTP with the code of a working directory, stopped, sent again, finished."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ebmscale.storage import Storage
from tests.conftest import TINY
from tests.runtime.conftest import MID, RESUMED, SETTINGS, undisturbed
from tests.runtime.local_cluster import ROOT, LocalCluster, config_file, final_state, running
from tests.runtime.search_runs import BEGUN, DONE, check_complete, space_file, store_at, tiny_config
from tests.s3_server import SECRET, S3Server
from tests.training.test_own_networks import SOURCE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

TWO = "ray.num_workers=2"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory with code that is not what is installed: it says so in its first line."""
    folder = tmp_path / "work"
    shutil.copytree(ROOT / "ebmscale", folder / "ebmscale", ignore=shutil.ignore_patterns("__pycache__"))
    view = folder / "ebmscale" / "training" / "view.py"
    text = view.read_text()
    assert 'f"run {run' in text
    view.write_text(text.replace('f"run {run', 'f"shipped run {run'))
    return folder


def submit_command(config: Path, url: str, work: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "ebmscale", "submit", str(config), "--address", url, "--working-dir", str(work),
            *overrides]  # fmt: skip


def ray(*words: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


def test_a_job_is_stopped_with_a_checkpoint_sent_again_by_ray_and_finished(
    pair: LocalCluster, make_config: Callable[..., Path], work: Path, digits_url: str, tmp_path: Path
) -> None:
    longer = {"train": {"max_samples": 64_000}}  # `ray job stop` takes some seconds
    config, url = make_config("job", **longer), pair.jobs_url
    with running(
        submit_command(config, url, work, TWO), **pair.access
    ) as job:  # the configuration is not in the folder
        line = job.wait_for(r"^job \S+ is submitted")
        assert "uploading" in job.text
        job.wait_for("^shipped run .* 2 worker")
        job.wait_for(MID)
        subprocess.run(ray("job", "stop", "--address", url, line.split()[1]), check=True, capture_output=True,
                       env=os.environ | pair.access)  # fmt: skip
        assert job.end() == 130, job.text
        saved = re.search(r"Stopped by SIGTERM; saved at ([\d,]+) of 64,000 samples", job.text)
        assert saved, job.text
    shutil.copy(config, work / "job.yaml")
    entry = ["python", "-m", "ebmscale", "train", "job.yaml", TWO]
    with running(
        ray("job", "submit", "--address", url, "--working-dir", str(work), "--", *entry), **pair.access
    ) as job:
        job.wait_for(f"shipped run .* resumed at {saved[1]} samples")
        assert job.end() == 0, job.text
    assert final_state(tmp_path / "runs" / "job") == undisturbed(digits_url, tmp_path, **longer)


def test_a_search_is_stopped_sent_again_and_finished(
    pair: LocalCluster, work: Path, digits_url: str, tmp_path: Path
) -> None:
    config, url = tiny_config(work, digits_url, storage={"url": str(tmp_path / "runs")}), pair.jobs_url
    space = space_file(work, num_trials=5)
    patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "100"}})
    entry = ["python", "-m", "ebmscale", "tune", config.name, "--space", space.name]
    command = ray("job", "submit", "--address", url, "--working-dir", str(work), "--runtime-env-json", patience, "--")
    with running([*command, *entry], **pair.access) as first:
        number = first.wait_for(r"raysubmit_\w+").split("'")[1]
        first.wait_for(DONE)
        first.wait_for(BEGUN)
        subprocess.run(ray("job", "stop", "--address", url, number), check=True, capture_output=True,
                       env=os.environ | pair.access)  # fmt: skip
        first.end()  # Ray gives 0 for a stopped job
        assert "Stopped by SIGTERM" in first.text
    with running([*command, *entry], **pair.access) as last:
        assert last.end() == 0, last.text
    check_complete(store_at(tmp_path / "runs" / "tune-tiny"), 5, first.lines + last.lines)


def test_following_ends_as_the_job_does(
    pair: LocalCluster, make_config: Callable[..., Path], work: Path, tmp_path: Path
) -> None:
    config, url = make_config("bad", data={"url": str(tmp_path / "nothing"), "format": None}), pair.jobs_url
    with running(submit_command(config, url, work, TWO), **pair.access) as job:
        number = job.wait_for(r"^job \S+ is submitted").split()[1]
        assert job.end() == 3, job.text
        assert "nothing" in job.text
        assert "Traceback" not in job.text
    attach = [sys.executable, "-m", "ebmscale", "submit", "--attach", number, "--address", url]
    with running(attach, **pair.access) as job:
        assert job.end() == 3, job.text
        assert "nothing" in job.text


def test_tokens(make_cluster: Callable[..., LocalCluster], make_config: Callable[..., Path], work: Path) -> None:
    cluster = make_cluster(1, "--cpus", "2")
    command = submit_command(make_config("token", train={"max_samples": 640}), cluster.jobs_url, work, TWO)
    for token in ({}, {"RAY_AUTH_TOKEN": "wrong" * 8}):
        with running(command, RAY_AUTH_MODE="token" if token else "disabled", HOME=str(work), **token) as job:
            assert job.end() == 2, job.text
            assert "refused the authentication token" in job.text
            assert "Traceback" not in job.text
    right = (cluster.folder / "token").read_text()
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": right}
    found = {"RAY_AUTH_TOKEN_PATH": str(cluster.folder / "token")}  # used because the cluster asks for one
    for token in (given, found):
        with running(command, **token) as job:
            assert job.end() == 0, job.text
            assert right not in job.text
    cluster.down()


class Relay:
    """Passes TCP connections on from an address that nodes reach to one of loopback."""

    def __init__(self, host: str, target: tuple[str, int]):
        self._target = target
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._pass, host, 0), self._loop).result()
        self.port = server.sockets[0].getsockname()[1]

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above_reader, above_writer = await asyncio.open_connection(*self._target)
        await asyncio.gather(self._pump(reader, above_writer), self._pump(above_reader, writer), return_exceptions=True)

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.mark.s3
def test_storage_and_shards_on_s3_through_the_loss_of_a_worker(
    make_cluster: Callable[..., LocalCluster], work: Path, straight: dict[str, Any], server: S3Server,
    tmp_path: Path, digits_url: str,
) -> None:  # fmt: skip
    cluster = make_cluster(2, "--cpus", "1")
    host = cluster.gateway
    url = server.url if host is None else f"http://{host}:{Relay(host, ('127.0.0.1', server.port)).port}"
    shards = Storage.at("s3://bucket/digits", endpoint_url=server.url)
    for path in Path(digits_url).iterdir():
        shards.publish(path.name, path.read_bytes())
    where = {"endpoint_url": url}
    runs = {"url": "s3://bucket/runs"} | where
    text = TINY.replace("DATA", "s3://bucket/digits")
    config = config_file(tmp_path, text, run={"name": "remote"}, storage=runs, **SETTINGS | {"data": where})
    with running(submit_command(config, cluster.jobs_url, work, TWO), **cluster.access) as job:
        job.wait_for(MID)
        os.kill(cluster.processes("ray::RayTrainWorker")[1], 9)
        job.wait_for(f"{RESUMED}.* 2 worker")
        assert job.end() == 0, job.text
        assert SECRET not in job.text
    saved = Storage.at("s3://bucket/runs/remote/checkpoints", endpoint_url=server.url)
    manifest = json.loads(saved.read_text(f"{saved.list()[-1]}/manifest.json"))
    cluster.down()
    assert {n: f["sha256"] for n, f in manifest["files"].items() if n != "clock.json"} == straight["files"]


def test_a_network_of_ones_own_travels_with_a_job(
    pair: LocalCluster, make_config: Callable[..., Path], work: Path, tmp_path: Path
) -> None:
    (work / "own_networks.py").write_text(SOURCE)
    config = make_config("own", train={"max_samples": 1600}, model={"ratio": {"class": "own_networks:Ratio"}})
    with running(submit_command(config, pair.jobs_url, work, TWO), **pair.access) as job:
        job.wait_for("^shipped run .* 2 worker")
        assert job.end() == 0, job.text
    stored = json.loads((tmp_path / "runs" / "own" / "networks.json").read_text())
    assert list(stored["sha256"]) == ["own_networks:Ratio"]
