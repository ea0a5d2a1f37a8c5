"""A run that lives in S3: trained, stopped, resumed, looked at and opened straight from there."""

import re
import time
from pathlib import Path

import pytest
from test_resume import changed, final_files, history, run_until

import ebmscale
from ebmscale.config import RunConfig
from ebmscale.data.stream import Batch
from ebmscale.errors import LostRunError, StorageError
from ebmscale.filesystem import upload_options
from ebmscale.model.checkpoint import position_of
from ebmscale.model.run_folder import run_storage
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training import claim
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.loop import train
from ebmscale.training.owner import Lease
from ebmscale.training.view import View
from ebmscale.world import World
from tests.conftest import PATIENCE_S
from tests.faulty_proxy import FaultyProxy
from tests.program import run_here

pytestmark = pytest.mark.s3


def on_s3(config: RunConfig, name: str) -> RunConfig:
    return changed(config, run={"name": name}, storage={"url": f"s3://bucket/{name}-runs"})


def test_a_run_in_s3_is_the_run_on_a_disk_also_through_two_stops(
    server, tiny: RunConfig, undisturbed: RunConfig
) -> None:
    config = on_s3(tiny, "stops")
    run_until(config, stop_after=1200)
    run_until(config, stop_after=1232)
    run_until(config)
    assert final_files(config) == final_files(undisturbed)
    for name in ("metrics.jsonl", "events.jsonl"):
        assert history(config, name) == history(undisturbed, name)


def test_the_commands_open_a_run_in_s3(server, tiny: RunConfig, tmp_path: Path) -> None:
    config = on_s3(changed(tiny, train={"max_samples": 1600}, checkpoint={"every_samples": 800}), "commands")
    run_until(config)
    url = run_storage(config).url
    listed = run_here("inspect", url)
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"000000001600-\w+\s+│\s+1,600\s+│\s+\d\s+│\s+0\.\d MB\s+│\s+ok", listed.stdout)
    assert run_here("export", url, str(tmp_path / "export")).returncode == 0
    straight, exported = ebmscale.load(url), ebmscale.load(str(tmp_path / "export"))
    assert straight.samples_seen == exported.samples_seen == 1600
    assert straight.sample(4).equal(exported.sample(4))
    storage = run_storage(config)
    newest = CheckpointStore(storage).finished()[0]
    storage.publish(f"checkpoints/{newest}/state.json", b"{}")
    broken = run_here("inspect", url)
    assert broken.returncode == 4
    assert "state.json is damaged" in broken.stdout
    assert ebmscale.load(url).samples_seen == 800


def test_the_server_refuses_what_arrives_damaged(server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.at("s3://bucket/digest", retries=1)
    monkeypatch.setattr("ebmscale.storage.upload_options", lambda url, data: upload_options(url, data + b"!"))
    with pytest.raises(StorageError, match="Cannot write"):
        storage.publish("file", b"content")
    assert not storage.exists("file")


def test_a_server_that_is_down_is_no_reason_to_begin_anew(server, tiny: RunConfig) -> None:
    config = on_s3(changed(tiny, train={"max_samples": 640}, checkpoint={"every_samples": 320}), "down")
    run_until(config)
    server.kill_gateway()
    try:
        blocks = changed(config, storage={"retries": 1})
        with pytest.raises(StorageError):
            train(blocks, View(quiet=True), World.alone(), StopSignal())
    finally:
        server.start_gateway()
    assert position_of(CheckpointStore(run_storage(config)).finished()[0]) == 640


def test_credentials_that_expire_end_the_run_with_its_checkpoint_intact(server, tiny: RunConfig) -> None:
    proxy = FaultyProxy(server.url, seed=0)
    config = changed(
        on_s3(tiny, "expired"),
        storage={"endpoint_url": proxy.url},
        checkpoint={"every_samples": 320, "retry_s": 2.0},
        train={"max_samples": 1_000_000},
    )
    store = CheckpointStore(Storage.at(run_storage(config).url))

    class Watching(View):
        def batch(self, batch: Batch) -> None:
            if not proxy.expired and batch.start >= 640 and store.finished():
                proxy.expired = True

    begin = time.monotonic()
    try:
        with pytest.raises(StorageError, match=r"token has expired.*AWS_ACCESS_KEY_ID.*is intact"):
            train(config, Watching(quiet=True), World.alone(), StopSignal())
    finally:
        proxy.close()
    assert time.monotonic() - begin < PATIENCE_S
    assert store.describe()[-1].problem in (None, "it was never finished")
    assert store.newest(lambda saved: saved.verify() or saved.samples_seen) is not None


def test_an_owner_on_s3_is_refused_and_taken_over_from(server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.at("s3://bucket/owned")
    storage.create("f", b"first")
    storage.create("f", b"second")
    assert storage.read_bytes("f") == b"first"
    monkeypatch.setattr(claim, "PATIENCE_S", 0.05)
    first = Lease(storage)
    first.take()
    with pytest.raises(LostRunError, match="is being written by process"):
        Lease(storage).take()
    first.check()
    first.release()
    with Lease(storage) as second:
        second.take()
        second.check()
    assert storage.read_bytes("owner/000002.beat") == b"released"
