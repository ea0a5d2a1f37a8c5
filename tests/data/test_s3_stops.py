"""CIFAR-10 over S3 in real processes that are stopped, many of them killed, and go on in other numbers."""

import itertools
import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.storage import Storage
from tests.data.indexed import indexed
from tests.data.streams import image_stream

pytestmark = [pytest.mark.s3, pytest.mark.slow]

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10" / "cifar10.npz"
NUM_STOPS = 20
BATCH = 480
SETTINGS = {"split": "train", "batch_size": BATCH, "seed": 7, "num_streams": 12, "window": 64}
LEG_S = 120


@pytest.fixture(scope="module")
def storage(server):
    if not CIFAR10.exists():
        pytest.skip(f"no CIFAR-10: put cifar10.npz into {CIFAR10.parent}")
    storage = Storage.at("s3://bucket/cifar10")
    pack(open_source("npy", str(CIFAR10)), storage, encoding="raw", shard_samples=5000)
    return Storage.at(storage.url, endpoint_url=server.url)


def consume(storage, manifest, start, rank, size, num_batches, journal):
    """One process: take batches, and write down the end and the keys of each once it has been used."""
    stream = image_stream(storage, manifest, rank=rank, size=size, start=start, validation_fraction=0, **SETTINGS)
    with journal.open("w") as file:
        for batch in itertools.islice(stream, num_batches):
            numbers = (batch.start + batch.rows).tolist()
            file.write(json.dumps([batch.end, numbers, batch.keys]) + "\n")
            file.flush()
    stream.close()


def journal_of(file):
    """The whole lines of a journal; a kill may have cut the last one."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def run_leg(context, storage, manifest, start, size, num_batches, kill, folder):
    """Processes until they have taken that many batches or, with `kill`, until the last one has begun to; journals."""
    files = [folder / f"{start}-{rank}.jsonl" for rank in range(size)]
    given = num_batches + 1000 if kill else num_batches
    processes = [
        context.Process(target=consume, args=(storage, manifest, start, rank, size, given, file))
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LEG_S
    if kill:
        while min(len(journal_of(file)) for file in files) < num_batches and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in processes:
            process.kill()
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        assert process.exitcode == (-9 if kill else 0)
    return [journal_of(file) for file in files]


def test_every_key_once_an_epoch_through_twenty_stops(storage, tmp_path):
    manifest = Manifest.load(storage)
    num = manifest.counts()["train"]
    chance = random.Random(20)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["s3fs", "ebmscale.data.stream"])
    seen: dict[int, str] = {}  # all that any process used, also what was used after the last agreed batch
    position, size, num_repeated, num_killed = 0, 2, 0, 0
    for stop in range(NUM_STOPS + 1):
        is_last = stop == NUM_STOPS
        kill = not is_last and chance.random() < 0.6
        num_batches = -(-(-position % num) // BATCH) + 1 if is_last else chance.randint(1, 20)
        journals = run_leg(context, storage, manifest, position, size, num_batches, kill, tmp_path)
        taken: dict[int, str] = {}
        for _, numbers, keys in itertools.chain(*journals):
            assert not taken.keys() & set(numbers)
            taken |= zip(numbers, keys, strict=True)
        num_repeated += len(taken.keys() & seen.keys())
        assert all(seen.get(number, key) == key for number, key in taken.items())
        agreed = min(journal[-1][0] for journal in journals)  # what a checkpoint would hold
        served = sorted(number for number in taken if number < agreed)
        assert served == list(range(position, agreed))
        seen |= taken
        position, num_killed = agreed, num_killed + kill
        size = chance.choice([other for other in (1, 2, 3, 4) if other != size])
    assert 5 < num_killed < NUM_STOPS
    assert num_repeated > 0  # ranks were killed at different batches
    everything = {key for shard in indexed(manifest) if shard.part == "train" for key in shard.keys}
    assert len(everything) == num
    for epoch in range(position // num):
        assert {seen[i] for i in range(epoch * num, (epoch + 1) * num)} == everything
    assert position >= num
    print(f"{position:,} samples, {position // num} whole epochs, {num_killed} kills, {num_repeated:,} repeated")
