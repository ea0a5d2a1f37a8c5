"""A pack that was stopped goes on, and ends in the same bytes."""

import contextlib
import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest

from ebmscale.data.checks import verify
from ebmscale.data.formats import open_source
from ebmscale.data.index import index
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import DataError
from ebmscale.storage import Storage


class Killed(Exception):
    """In the place of a kill."""


def files(storage):
    return {name: storage.read_bytes(name) for name in storage.list()}


def stop_after(num_shards):
    """A progress callback that ends the pack after so many shards."""

    def progress(done, total):
        nonlocal num_shards
        num_shards -= 1
        if not num_shards:
            raise Killed

    return progress


def counting(source):
    """The source, and the list of the keys whose image was loaded."""
    loaded = []

    def lazy(record):
        def load():
            loaded.append(record.key)
            return record.image

        return record._replace(image=load)

    return dataclasses.replace(source, records=lambda: map(lazy, source.records())), loaded


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4])
@pytest.mark.parametrize("encoding", ["raw", None])
def test_finished_shards_are_not_done_again(make_source, tmp_path, num_shards, encoding):
    source, loaded = counting(make_source(num_train=50, num_test=20))
    whole, stopped = Storage.at(tmp_path / "whole"), Storage.at(tmp_path / "stopped")
    pack(source, whole, shard_samples=15, encoding=encoding)
    with pytest.raises(Killed):
        pack(source, stopped, shard_samples=15, encoding=encoding, progress=stop_after(num_shards))
    assert not stopped.exists("manifest.json")
    loaded.clear()
    seen = []
    pack(source, stopped, shard_samples=15, encoding=encoding, progress=lambda *counts: seen.append(counts))
    assert len(loaded) == 70 - [0, 15, 30, 45, 50][num_shards]
    assert seen == [(15, 70), (30, 70), (45, 70), (50, 70), (65, 70), (70, 70)]
    assert files(stopped) == files(whole)


def test_an_object_store(make_source, tmp_path):
    whole, stopped = Storage.at(tmp_path / "whole"), Storage.at(f"memory://{tmp_path.name}")
    pack(make_source(), whole, shard_samples=10)
    with pytest.raises(Killed):
        pack(make_source(), stopped, shard_samples=10, progress=stop_after(3))
    pack(make_source(), stopped, shard_samples=10)
    assert files(stopped) == files(whole)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("toy-train-000001.tar", "deleted"),
        ("toy-train-000001.tar", "truncated"),
        ("toy-train-000001.index.npz", "deleted"),
        ("toy-train-000001.index.npz", "truncated"),
        ("toy-train-000001.index.npz", "other bytes"),
    ],
)
def test_a_shard_that_is_not_whole_is_done_again(make_source, tmp_path, damage, name):
    whole, stopped = Storage.at(tmp_path / "whole"), Storage.at(tmp_path / "stopped")
    pack(make_source(), whole, shard_samples=10)
    with pytest.raises(Killed):
        pack(make_source(), stopped, shard_samples=10, progress=stop_after(3))
    if damage == "deleted":
        stopped.delete(name)
    elif damage == "truncated":
        stopped.publish(name, b"half")
    else:
        stopped.publish(name, bytes(len(stopped.read_bytes(name))))
    pack(make_source(), stopped, shard_samples=10)
    assert files(stopped) == files(whole)


def test_another_set_or_other_options_do_not_go_on(make_source, storage):
    with pytest.raises(Killed):
        pack(make_source(), storage, shard_samples=10, progress=stop_after(2))
    for source, options in (
        (make_source(num_train=51), {"shard_samples": 10}),
        (make_source(), {"shard_samples": 11}),
        (make_source(name="other"), {"shard_samples": 10}),
    ):
        with pytest.raises(DataError, match="holds an unfinished pack of another set or with other options"):
            pack(source, storage, **options)


def test_other_options_go_on_where_no_shard_is_finished(make_source, storage):
    source = make_source()

    def broken():
        yield from ()
        raise Killed

    with pytest.raises(Killed):
        pack(dataclasses.replace(source, records=broken), storage, shard_samples=10)
    assert [shard.num_samples for shard in pack(source, storage, shard_samples=25).shards] == [25, 25]


def test_other_files_do_not_go_on(make_source, storage):
    source = make_source()
    with pytest.raises(Killed):
        pack(source, storage, shard_samples=10, progress=stop_after(2))
    renamed = [record._replace(key=f"x{record.key}") for record in source.records()]
    with pytest.raises(DataError, match=r"not those that shard toy-train-000000\.tar was made of"):
        pack(dataclasses.replace(source, records=lambda: iter(renamed)), storage, shard_samples=10)


def test_an_encoding_asked_for_must_be_the_one_that_is_there(make_source, storage):
    manifest = pack(make_source(), storage)
    assert pack(make_source(), storage, encoding="raw") == manifest
    with pytest.raises(DataError, match=r"already holds another set .* as raw"):
        pack(make_source(), storage, encoding="png")


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from ebmscale.cli import main

def kill():  # amid whatever the command does when enough shards are there
    while len(list(Path(sys.argv[4]).glob("*.tar"))) < 4:
        pass
    os.kill(os.getpid(), signal.SIGKILL)

sys.setswitchinterval(1e-4)
threading.Thread(target=kill, daemon=True).start()
main()
"""


def test_killed_for_good(tmp_path):
    """The command, killed with SIGKILL when some shards are there, then given again."""
    np.save(tmp_path / "set.npy", np.random.default_rng(0).integers(0, 256, (6000, 3, 32, 32), np.uint8))
    words = ["pack", "npy", str(tmp_path / "set.npy")]
    options = ["--encoding", "png", "--shard-samples", "200"]
    whole, killed = Storage.at(tmp_path / "whole"), Storage.at(tmp_path / "killed")
    (tmp_path / "killed").mkdir()  # the command makes a folder twice, and between them there is none to look into
    done = subprocess.run([sys.executable, "-c", KILLED, *words, killed.url, *options], check=False)
    assert done.returncode == -signal.SIGKILL
    finished = {name: killed.local_path(name).stat().st_mtime_ns for name in killed.list() if name.endswith(".tar")}
    assert 3 <= len(finished) < 30
    subprocess.run([sys.executable, "-m", "ebmscale", *words, killed.url, *options], check=True)
    pack(open_source("npy", str(tmp_path / "set.npy")), whole, encoding="png", shard_samples=200)
    assert files(killed) == files(whole)
    kept = [name for name, changed in finished.items() if killed.local_path(name).stat().st_mtime_ns == changed]
    assert len(kept) >= len(finished) - 1  # the last one may have had no note yet


def test_of_two_packs_that_differ_only_one_goes_on(make_source, tmp_path):
    source, storage = make_source(num_train=50, num_test=20), Storage.at(tmp_path / "set")

    def begin_another(done, total):
        storage.delete(".partial")  # no shard was finished when it began
        with contextlib.suppress(Killed):
            pack(source, storage, shard_samples=20, progress=stop_after(2))

    with pytest.raises(DataError, match=r"Another pack, .*other shard_samples"):
        pack(source, storage, shard_samples=15, progress=begin_another)
    assert not storage.exists("manifest.json")
    pack(source, storage, shard_samples=20)
    verify(storage, Manifest.load(storage), "sha256")


def test_the_slower_of_two_equal_packs_returns_the_set_of_the_faster(make_source, tmp_path):
    source, storage = make_source(num_train=50, num_test=20), Storage.at(tmp_path / "set")
    made = []

    def finish_first(done, total):
        if not made:
            made.append(pack(source, storage, shard_samples=15))

    assert pack(source, storage, shard_samples=15, progress=finish_first) == made[0]
    verify(storage, Manifest.load(storage), "sha256")
    assert not storage.exists(".partial")


def test_a_folder_that_is_deleted_during_a_pack_does_not_become_half_a_set(make_source, tmp_path):
    source, storage = make_source(num_train=50, num_test=20), Storage.at(tmp_path / "set")
    with pytest.raises(DataError, match="was deleted while it was packed"):
        pack(source, storage, shard_samples=15, progress=lambda *_: storage.delete(""))
    assert storage.list() == []
    pack(source, storage, shard_samples=15)


def test_an_unfinished_pack_is_not_indexed_as_half_a_set(make_source, tmp_path):
    source, storage = make_source(num_train=50, num_test=20), Storage.at(tmp_path / "set")
    with pytest.raises(Killed):
        pack(source, storage, shard_samples=15, progress=stop_after(2))
    with pytest.raises(DataError, match="unfinished pack: run that `ebmscale pack` again"):
        index(storage)
    assert pack(source, storage, shard_samples=15).num_samples == 70
