"""A pack by several workers: the bytes of a pack by one process, and the same command continues it."""

import json

import numpy as np
import pytest
from PIL import Image

from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.pack_parts import PackJob, SourceOptions
from ebmscale.errors import ConfigError, DataError
from ebmscale.runtime.part_job import Workers
from ebmscale.runtime.parts import run_parts
from ebmscale.storage import Storage
from tests.program import run_here


def files(storage):
    return {name: storage.read_bytes(name) for name in storage.list() if not name.startswith(".")}


def job_of(options, storage, **more):
    settings = {"encoding": None, "shard_samples": 300, "num_threads": 1, "max_damaged": 0.2}
    return PackJob.of(options, options.open(), storage, **settings | more)


def write_images(folder, num=40, damaged=()):
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for number in range(num):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            path = folder / part / f"{number:03d}.png"
            Image.fromarray(pixels).save(path)
            if (part, number) in damaged:
                path.write_bytes(path.read_bytes()[:40])
    return SourceOptions("folder", str(folder))


@pytest.mark.parametrize("fraction", [None, 0.3])
def test_the_set_is_that_of_one_process(tmp_path, fraction):
    options = SourceOptions("digits", "", test_fraction=fraction)
    alone, shared = Storage.at(tmp_path / "alone"), Storage.at(tmp_path / "shared")
    pack(options.open(), alone, shard_samples=300)
    job = job_of(options, shared)
    assert job.num_parts == len(Manifest.load(alone).shards)
    work = job.open()
    for part in reversed(range(job.num_parts)):  # in any order
        work(part)
    manifest = job.finish(options.open())
    assert manifest.identity() == Manifest.load(alone).identity()
    assert files(shared) == files(alone)
    assert not (tmp_path / "shared" / ".parts").exists()


def test_samples_that_are_left_out_and_limits_of_bytes_keep_the_order(tmp_path):
    options = write_images(tmp_path / "images", damaged={("train", 3), ("train", 17), ("test", 39)})
    alone, shared = Storage.at(tmp_path / "alone"), Storage.at(tmp_path / "shared")
    pack(options.open(), alone, max_damaged=0.2)
    job = job_of(options, shared, shard_samples=16, shard_bytes=8000)
    run_parts(job, Workers())
    manifest = job.finish(options.open())
    keys = [[key for place in range(len(one.shards)) for key in one.index(place).texts()]
            for one in (manifest, Manifest.load(alone))]  # fmt: skip
    assert keys[0] == keys[1]
    assert len(keys[0]) == 77
    names = [row.file for row in manifest.shards]
    assert names[:2] == ["images-train-000000.tar", "images-train-000000-1.tar"]
    left_out = json.loads(shared.read_text("left_out.json"))["samples"]
    assert left_out == json.loads(alone.read_text("left_out.json"))["samples"]
    strict = job_of(options, Storage.at(tmp_path / "strict"), max_damaged=0.03)
    run_parts(strict, Workers())
    with pytest.raises(DataError, match=r"3 of the 80 samples .* more than the share of 0\.03"):
        strict.finish(options.open())


def test_a_pack_continues_and_another_is_refused(tmp_path):
    options = SourceOptions("digits", "")
    storage = Storage.at(tmp_path / "set")
    job_of(options, storage).open()(1)
    before = (tmp_path / "set" / "digits-train-000001.tar").stat().st_mtime_ns
    with pytest.raises(ConfigError, match="its shard_samples is 300, now it is 200"):
        job_of(options, storage, shard_samples=200)
    with pytest.raises(DataError, match="unfinished pack by several workers"):
        pack(options.open(), storage)
    job = job_of(options, storage)
    run_parts(job, Workers())
    job.finish(options.open())
    assert (tmp_path / "set" / "digits-train-000001.tar").stat().st_mtime_ns == before
    assert Manifest.load(storage).counts() == {"train": 1797}


def test_the_command_packs_with_two_workers(tmp_path):
    done = run_here("pack", "digits", "-", tmp_path / "set", "--shard-samples", "400", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "digits, 1,797 train, 10 class(es), 5 shard(s), raw" in done.stdout
    again = run_here("pack", "digits", "-", tmp_path / "set", "--workers", "2")
    assert "already packed" in again.stdout
