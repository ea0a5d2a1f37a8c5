"""The rate of shuffled batches of 32x32 colour images from shards, and the time that training waits for them.

    python tools/bench/stream.py --data ../shared/data/cifar10/cifar10.npz --seconds 5
    python tools/bench/stream.py --data ../shared/data/cifar10/cifar10.npz --part wait

The part `speed` counts images per processor second on one core. It compares this package, webdataset's own pipeline
over the same tars, torch's DataLoader over the images in one .npy file, and a plain read of the tars, in one run.
Without `--data` the images are random, which makes no difference for raw bytes.

The part `wait` trains with the SVHN preset in one torch thread and one reader thread, from a folder and from an S3
server on loopback (Ceph's, see tests/s3_server.py). It prints the share of the updates' time that was spent waiting for
a batch. It starts where all windows end during the measured updates, which is the most work for the reader.
"""

import argparse
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import s3fs
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ebmscale.config import parse_config
from ebmscale.data.formats import Record, Source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.split import select
from ebmscale.data.stream import Batching, ImageStream
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training.opening import open_run
from ebmscale.training.update import train_batch
from ebmscale.world import World

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.s3_server import KEY, SECRET, S3Server, missing_programs

SHAPE = (3, 32, 32)
BATCH = 100
SHUFFLED = 5000  # samples in webdataset's buffer
STREAMS, WINDOW = 64, 512
NEAR_THE_END = 400  # samples of its window that every stream has delivered before the part `wait`
WARM_UPDATES = 2

SVHN = """
run: {name: bench}
data: {url: DATA, num_streams: 64, shuffle_window: 512}
storage: {url: RUNS}
model: {latent_dim: 100, generator: {form: svhn, width: 64}}
posterior: {num_steps: 20, step_size: 0.1}
train: {batch_size: 100, max_samples: 1000000}
num_threads: 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="cifar10.npz (default: random images)")
    parser.add_argument("--num", type=int, default=50_000, help="images")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    parser.add_argument("--encodings", default="raw,png,jpeg")
    parser.add_argument("--part", choices=("speed", "wait"), default="speed")
    parser.add_argument("--updates", type=int, default=8, help="measured updates of the part wait")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "wait":
        report_wait(make_source(arguments.data, arguments.num), arguments.updates)
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    source = make_source(arguments.data, arguments.num)
    print(f"{source.name}, {arguments.num} images of {SHAPE}, batches of {BATCH}, one core")
    with tempfile.TemporaryDirectory() as folder:
        for encoding in arguments.encodings.split(","):
            storage = Storage.at(Path(folder) / encoding)
            manifest = pack(source, storage, encoding=encoding)
            report(encoding, storage, manifest, arguments.seconds, save_as_array(source, Path(folder)))


def report_wait(source: Source, num_updates: int) -> None:
    """Trains from a folder, then from S3 if a server is installed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_wait("folder", source, str(folder / "shards"), folder / "runs-folder", num_updates)
        if missing := missing_programs():
            print(f"S3 left out: {', '.join(missing)} not installed")
            return
        server = S3Server(folder / "ceph")
        os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": server.url}
        try:
            server.start()
            s3fs.S3FileSystem(endpoint_url=server.url).mkdir("bench")
            measure_wait("S3", source, "s3://bench/shards", folder / "runs-s3", num_updates)
        finally:
            server.stop()


def measure_wait(name: str, source: Source, url: str, runs: Path, num_updates: int) -> None:
    """Packs, opens a run, trains some updates, and prints the share of their time that was spent waiting."""
    storage = Storage.at(url)
    manifest = pack(source, storage, encoding="raw")
    run = open_run(parse_config(SVHN.replace("DATA", url).replace("RUNS", str(runs))), World.alone(), StopSignal())
    batching = Batching(BATCH, 0, STREAMS, WINDOW)
    stream = ImageStream(storage, manifest, select(manifest, "train"), batching, start=NEAR_THE_END * STREAMS)
    waits, totals = [], []
    batches = iter(stream)
    for _ in range(WARM_UPDATES + num_updates):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        train_batch(run, batch)
        totals.append(time.perf_counter() - start)
    stream.close()
    first, waits, totals = waits[0], waits[WARM_UPDATES:], totals[WARM_UPDATES:]
    print(
        f"{name:7} {num_updates} updates, median {statistics.median(totals):.2f} s; "
        f"waited {sum(waits) * 1e3:.1f} ms in all, {max(waits) * 1e3:.1f} ms at most: "
        f"{sum(waits) / sum(totals):.3%} of the time (first batch {first:.2f} s)",
        flush=True,
    )


def report(encoding: str, storage: Storage, manifest: Manifest, seconds: float, array: Path) -> None:
    """Measures alternately, so that other load affects all ways, and prints the medians."""
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    split = select(manifest, "train", validation_fraction=0)
    stream = ImageStream(storage, manifest, split, Batching(BATCH, 0, STREAMS, WINDOW))
    ways: dict[str, Iterator[int]] = {
        "ours": (len(batch.images) for batch in stream),
        "webdataset": webdataset_batches(storage, manifest),
        ".npy": array_batches(array),
        "plain read": plain_reads(storage, manifest),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            rates[name].append(rate(way, seconds / 3))
    stream.close()
    median = {name: sorted(found)[1] for name, found in rates.items()}
    print(f"\n{encoding}: {num_bytes / 1e6:.0f} MB in {len(manifest.shards)} shards")
    for name, images_per_s in median.items():
        megabytes = images_per_s * num_bytes / sum(manifest.counts().values()) / 1e6
        print(f"  {name:12} {images_per_s:10,.0f} images/s {megabytes:8.0f} MB/s of shards")
    for name in ("webdataset", ".npy", "plain read"):
        print(f"  ours / {name} {median['ours'] / median[name]:.2f}")


def rate(images: Iterator[int], seconds: float) -> float:
    """Images a processor second, without those that were read ahead before."""
    for _ in itertools.islice(images, 70):
        pass
    start, num_images = time.process_time(), 0
    while time.process_time() - start < seconds:
        num_images += next(images)
    return num_images / (time.process_time() - start)


def webdataset_batches(storage: Storage, manifest: Manifest) -> Iterator[int]:
    """webdataset's pipeline: shards in random order, a shuffle buffer, decode, batch."""
    files = [storage.url_of(shard.file) for shard in manifest.shards]
    ending = {"raw": "bin", "png": "png", "jpeg": "jpg"}[manifest.encoding]
    decode: Callable[[bytes], np.ndarray] = decode_raw if ending == "bin" else decode_image
    dataset = (
        wds.WebDataset(files, shardshuffle=len(files), seed=0)
        .shuffle(SHUFFLED)
        .to_tuple(ending, "cls")
        .map_tuple(decode, int)
        .batched(BATCH)
    )
    while True:
        for images, _ in dataset:
            yield len(torch.as_tensor(images))


def save_as_array(source: Source, folder: Path) -> Path:
    """All images as one .npy file."""
    path = folder / "images.npy"
    if not path.exists():
        np.save(path, np.stack([record.load() for record in source.records()]))
    return path


def array_batches(path: Path) -> Iterator[int]:
    """torch's DataLoader over the rows of an array that is mapped into memory, in random order."""
    images = np.load(path, mmap_mode="r")
    loader = DataLoader(Rows(images), batch_size=BATCH, shuffle=True)
    while True:
        for batch in loader:
            yield len(batch)


class Rows(Dataset[torch.Tensor]):
    """Single images of an array."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.images[number]))


def decode_raw(payload: bytes) -> np.ndarray:
    return np.frombuffer(payload, np.uint8).reshape(SHAPE)


def decode_image(payload: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(payload))).transpose(2, 0, 1)


def plain_reads(storage: Storage, manifest: Manifest) -> Iterator[int]:
    """Reads the same files from end to end, one mebibyte at a time."""
    while True:
        for shard in manifest.shards:
            with open(storage.url_of(shard.file), "rb", buffering=0) as file:
                carried = 0.0
                while block := file.read(1 << 20):
                    carried += len(block) * shard.num_samples / shard.num_bytes
                    yield int(carried)
                    carried -= int(carried)


def make_source(data: Path | None, num: int) -> Source:
    """CIFAR-10's training images, or smooth random ones (which PNG and JPEG can compress)."""
    if data is not None and data.exists():
        with np.load(data) as arrays:
            images = next(arrays[name] for name in arrays.files if arrays[name].ndim == 4)[:num]
        if images.shape[1:] != SHAPE:
            images = images.transpose(0, 3, 1, 2)
        name = "cifar10"
    else:
        coarse = np.random.default_rng(0).integers(0, 256, (num, 3, 8, 8), np.uint8)
        images, name = coarse.repeat(4, 2).repeat(4, 3), "random"

    def records() -> Iterator[Record]:
        for number, image in enumerate(images):
            yield Record(f"{number:06d}", image, number % 10, "train")

    return Source(name, name, SHAPE, "uint8", [str(label) for label in range(10)], {"train": len(images)}, records)


if __name__ == "__main__":
    main()
