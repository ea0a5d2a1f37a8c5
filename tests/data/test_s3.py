"""Streams over a real S3 server: the order is that of a folder, whatever the server and the readers go through."""

import itertools
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor

import pytest
import s3fs
import torch

from ebmscale.data.checks import inspect_shards
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import StorageError
from ebmscale.storage import Storage
from tests.data.streams import image_stream
from tests.faulty_proxy import FaultyProxy

pytestmark = [pytest.mark.s3]  # one server for all

NUM = 600
SETTINGS = {"split": "train", "batch_size": 24, "seed": 5, "num_streams": 12, "window": 16, "validation_fraction": 0}


@pytest.fixture(scope="module")
def packed(server, make_source):
    """The set over S3; shards are read in ranges, not kept whole."""
    storage = Storage.at("s3://bucket/toy")
    return storage, pack(make_source(num_train=NUM), storage, shard_samples=50)


@pytest.fixture(autouse=True)
def ranges_only(monkeypatch):
    monkeypatch.setattr("ebmscale.data.reader.WHOLE_BYTES", 0)
    monkeypatch.setattr("ebmscale.data.reader.GAP_BYTES", 2000)  # joins neighbours only
    monkeypatch.setattr("ebmscale.data.stream.BATCHES_AHEAD", 2)


def test_names_on_s3_are_names(server):
    names = ["a[12]", "a1", "a2", "a?", "a*", "a::b", "a%20b", "a b", "q#1", "é日", "x&y=1+"]
    place = Storage.at("s3://bucket/names [x]*")
    for name in names:
        place.child(name).publish(f"{name}/{name}", name.encode())
        place.publish(f"files/{name}", name.encode())
    Storage.at("s3://bucket").publish("top", b"1")
    top, file = Storage.of_file("s3://bucket/top")
    assert top.read_bytes(file) == b"1"
    left = sorted(names)
    while left:
        assert place.list("files") == left
        assert place.list() == sorted([*left, "files"])
        assert place.child(left[0]).child(left[0]).read_text(left[0]) == left[0]
        gone = left.pop(0)
        place.delete(gone)
        place.delete(f"files/{gone}")
        assert not place.exists(gone)
        assert [place.read_text(f"files/{name}") for name in left] == left
    assert not place.exists()


def take(stream, num_batches):
    try:
        return list(itertools.islice(stream, num_batches))
    finally:
        stream.close()


def keys_by_number(batches):
    return {
        batch.start + row: key for batch in batches for row, key in zip(batch.rows.tolist(), batch.keys, strict=True)
    }


def test_a_stream_from_s3_is_the_stream_from_a_folder(packed, make_source, tmp_path):
    storage, manifest = packed
    folder = Storage.at(tmp_path / "toy")
    assert pack(make_source(num_train=NUM), folder, shard_samples=50) == manifest == Manifest.load(storage)
    assert [finding.problem for finding in inspect_shards(storage, Manifest.load(storage))] == [None] * 12
    pairs = [take(image_stream(place, manifest, **SETTINGS), 30) for place in (storage, folder)]
    for ours, theirs in zip(*pairs, strict=True):
        assert (ours.keys, ours.start) == (theirs.keys, theirs.start)
        assert torch.equal(ours.images, theirs.images)


def test_a_server_that_dies_and_comes_back_changes_nothing(packed, server):
    storage, manifest = packed
    clean = take(image_stream(storage, manifest, **SETTINGS), 40)
    stream = image_stream(storage, manifest, **SETTINGS)
    batches = iter(stream)
    seen = list(itertools.islice(batches, 10))
    server.kill_gateway()
    seen += itertools.islice(batches, 2)  # what was read ahead
    revive = multiprocessing.get_context("fork").Process(target=_start_later, args=(server,))
    revive.start()
    seen += itertools.islice(batches, 28)
    revive.join()
    stream.close()
    assert keys_by_number(seen) == keys_by_number(clean)
    assert len(seen) == 40


def _start_later(server):
    import time

    time.sleep(2)
    server.start_gateway()


def test_a_server_that_stays_away_is_one_clear_error(packed, server):
    server.kill_gateway()
    try:
        with pytest.raises(StorageError, match=r"bytes 5 to 14 of s3://bucket/toy/x .*3 tries.*AWS_ENDPOINT_URL"):
            Storage.at("s3://bucket/toy", retries=2).read_range("x", 5, 10)
    finally:
        server.start_gateway()


def test_refused_and_cut_answers_change_nothing(packed, server):
    storage, manifest = packed
    clean = take(image_stream(storage, manifest, **SETTINGS), 15)
    proxy = FaultyProxy(server.url, busy=0.2, cut=0.05, seed=4)
    try:
        faulty = Storage.at(storage.url, endpoint_url=proxy.url)
        spoilt = take(image_stream(faulty, manifest, **SETTINGS), 15)
    finally:
        proxy.close()
    assert proxy.refused > 3
    assert proxy.cut_short > 0
    assert keys_by_number(spoilt) == keys_by_number(clean)
    assert all(torch.equal(a.images, b.images) for a, b in zip(clean, spoilt, strict=True))


def test_missing_rights_say_what_to_do(packed, monkeypatch):
    with pytest.raises(StorageError, match=r"credentials \(AWS_ACCESS_KEY_ID"):
        Storage.at("s3://bucket/toy", anon=True).read_bytes("manifest.json")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(StorageError, match=r"set AWS_ACCESS_KEY_ID .* `anonymous: true`"):
        Storage.at("s3://bucket/toy", retries=0, use_ssl=False).exists("manifest.json")


def test_public_objects_are_read_without_credentials(packed):
    s3fs.S3FileSystem().pipe_file("bucket/public/x", b"hello")
    s3fs.S3FileSystem().chmod("bucket/public/x", acl="public-read")
    assert Storage.at("s3://bucket/public", anon=True).read_bytes("x") == b"hello"


def read_leg(url, start, rank, size, num_batches):
    storage = Storage.at(url)
    stream = image_stream(storage, Manifest.load(storage), rank=rank, size=size, start=start, **SETTINGS)
    return keys_by_number(take(stream, num_batches))


def test_processes_that_stop_and_go_on_in_other_numbers_see_each_sample_once(packed):
    """A few stops; test_s3_stops has more, of processes that are killed."""
    storage, _ = packed
    chance = random.Random(5)
    served: dict[int, str] = {}
    position, size = 0, 2
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        for _ in range(6):
            num_batches = chance.randint(1, 40)
            legs = [pool.submit(read_leg, storage.url, position, rank, size, num_batches) for rank in range(size)]
            for leg in legs:
                assert not served.keys() & leg.result().keys()
                served |= leg.result()
            position += num_batches * SETTINGS["batch_size"]
            size = chance.choice([other for other in (1, 2, 3) if other != size])
    assert sorted(served) == list(range(position))
    for epoch in range(position // NUM):
        assert len({served[i] for i in range(epoch * NUM, (epoch + 1) * NUM)}) == NUM
