"""What a worker needs to begin, and to go to a position, in sets of up to a billion samples; and the memory of windows.

    python tools/bench/scale.py
    python tools/bench/scale.py --part windows

The part `start` is one rank of 1,024 that begins a run: it reads the manifest, its share of 512 held-out images, and
the first batch of 4,096 (32x32, raw, shards of 10,000). Then it opens a stream late in an epoch. The shards and their
indexes are made up when they are read (tests/data/made_up_set.py); the manifest is a real file. Each line is a fresh
process. Memory is the highest resident set after the imports, beyond what it was then.

The part `windows` is one worker with 64 streams of 512. It prints processor seconds until the first batch of 32x32
images, from real files, and the memory of windows of 256x256 images.

The part `logs` resumes a run with 10^6 lines of metrics in a local folder, and in a storage
that cannot append.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from ebmscale.data.choose import lowest
from ebmscale.data.chunks import read_samples
from ebmscale.data.formats import Record, Source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.split import select
from ebmscale.data.stream import Batching, ImageStream
from ebmscale.storage import Storage
from ebmscale.training.line_files import LineFile
from ebmscale.training.metrics import METRICS_FILE, RunLog
from ebmscale.world import World, owned_rows
from tests.data.made_up_set import SHAPE, MadeUpFiles, make_up, register

PER_SHARD = 10_000
RANKS, BATCH, HELD_OUT = 1024, 4096, 512
STREAMS, WINDOW = 64, 512
FRACTION = 0.05


def main() -> None:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=["start", "windows", "logs"])
    parser.add_argument("--samples", default="1e6,1e8,1e9", help="sizes of sets")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, argument = arguments.child
        return {"start": begin, "first": first_batch, "large": large_windows, "logs": logs}[kind](argument)
    if arguments.part in (None, "start"):
        start([int(float(size)) for size in arguments.samples.split(",")])
    if arguments.part in (None, "windows"):
        windows()
    if arguments.part in (None, "logs"):
        child("logs", "-")


def start(sizes: list[int]) -> None:
    """One line for each size of a set."""
    print("samples, manifest MB, memory MB, s to the first batch, MB read; late: s, MB read, indexes, shards")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "manifest.json"
            path.write_text(make_up(size // PER_SHARD, PER_SHARD, counted=True).to_json())
            child("start", str(path))


def windows() -> None:
    """The figures of one worker."""
    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (50_000, 3, 32, 32), np.uint8)
        records = [Record(f"{number:06d}", image, 0, "train") for number, image in enumerate(images)]
        source = Source("bench", "npy", (3, 32, 32), "uint8", ["0"], {"train": len(images)}, lambda: iter(records))
        pack(source, Storage.at(folder), encoding="raw")
        child("first", folder)
    child("large", "-")


def child(kind: str, argument: str) -> None:
    """Measures in a process of its own."""
    subprocess.run([sys.executable, __file__, "--child", kind, argument], check=True)


def begin(path: str) -> None:
    """A rank's start, and a late position."""
    register(PER_SHARD, math.prod(SHAPE))
    base, since = resident("VmRSS"), time.perf_counter()
    text = Path(path).read_bytes()
    manifest = Manifest.from_json(text, Storage.at("madeup://set"))
    storage = Storage.at("madeup://set")
    chosen = lowest(select(manifest, "validation", FRACTION), HELD_OUT)
    world = World(3, RANKS, torch.device("cpu"))
    read_samples(storage, manifest, chosen.at(owned_rows(len(chosen), RANKS, world).numpy()))
    next_batch(storage, manifest, 0)
    seconds, read = time.perf_counter() - since, MadeUpFiles.num_bytes
    MadeUpFiles.num_bytes = 0
    MadeUpFiles.calls.clear()
    since = time.perf_counter()
    late = next_batch(storage, manifest, int(manifest.num_samples * (1 - FRACTION) * 0.99) // BATCH * BATCH)
    late_s = time.perf_counter() - since
    indexes = sum(name.endswith("npz") for name in MadeUpFiles.calls)
    print(
        f"{manifest.num_samples:.0e}, {len(text) / 1e6:.1f}, {(resident('VmHWM') - base) / 1e6:.0f}, {seconds:.1f}, "
        f"{(len(text) + read) / 1e6:.1f}, {late_s:.2f}, {MadeUpFiles.num_bytes / 1e6:.1f}, {indexes}, "
        f"{len(MadeUpFiles.calls) - indexes}; {late} rows a rank"
    )


def next_batch(storage: Storage, manifest: Manifest, position: int) -> int:
    """The rows of this rank in the batch at a position."""
    batching = Batching(BATCH, 0, RANKS, WINDOW)
    stream = ImageStream(
        storage, manifest, select(manifest, "train", FRACTION), batching, rank=3, size=RANKS, start=position
    )
    return len(next(stream._read_groups(position))[0].batch.images)


def first_batch(folder: str) -> None:
    """Processor time until the first batch, from files."""
    storage = Storage.at(folder)
    stream = single(storage, Manifest.load(storage))
    since = time.process_time()
    next(stream._read_groups(0))
    print(f"first batch of {STREAMS} streams of {WINDOW}, raw 32x32: {time.process_time() - since:.2f} CPU s")


def large_windows(_: str) -> None:
    """Memory of the windows of large images."""
    manifest = make_up(1000, 340, shape=(3, 256, 256))
    base = resident("VmRSS")
    batches = itertools.chain.from_iterable(single(Storage.at("madeup://set"), manifest)._read_groups(0))
    for _batch in range(60):
        next(batches)
    print(f"{STREAMS} streams of {WINDOW}, raw 256x256, one worker: {(resident('VmHWM') - base) / 1e6:.0f} MB")


def logs(_: str) -> None:
    """A resume after a million lines of metrics."""
    line = {"samples_seen": 0, "text": "x" * 480}
    with tempfile.TemporaryDirectory() as folder:
        for storage in (Storage.at(folder), Storage.at("memory://scale")):
            file = LineFile(storage, METRICS_FILE)
            for first in range(0, 10**6, 1000):
                numbers = range(first, first + 1000)
                file.append(b"".join(json.dumps(line | {"samples_seen": n}).encode() + b"\n" for n in numbers))
            base, since = resident("VmRSS"), time.perf_counter()
            log = RunLog(storage, {METRICS_FILE: 10**6 - 10}, tensorboard=False)
            seconds, memory = time.perf_counter() - since, resident("VmRSS") - base
            log.metrics(10**6, {"loss": 1.0})
            log.close()
            print(f"resume after 10^6 lines, {storage.url}: {seconds:.2f} s, {memory / 1e6:.0f} MB")


def single(storage: Storage, manifest: Manifest) -> ImageStream:
    """The stream of a single worker."""
    split = select(manifest, "train", validation_fraction=0)
    return ImageStream(storage, manifest, split, Batching(128, 0, STREAMS, WINDOW))


def resident(name: str) -> int:
    """Bytes of the resident set: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system has no /proc/self/status")


if __name__ == "__main__":
    main()
