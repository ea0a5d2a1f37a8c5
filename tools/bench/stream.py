"""How fast do shuffled batches of 32x32 colour images come out of shards, on one core, side by side in one run?

    python tools/bench/stream.py --data ../shared/data/cifar10/cifar10.npz --seconds 5

Compared are this package, webdataset's own pipeline over the same tars, and reading the same files from end to end
and doing nothing with them. Without `--data` the images are random, which is the same for raw bytes.
"""

import argparse
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from ebmscale.data.formats import Record, Source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.stream import ImageStream
from ebmscale.storage import Storage

SHAPE = (3, 32, 32)
BATCH = 100
SHUFFLED = 5000  # samples in webdataset's buffer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="cifar10.npz; random images where there is none")
    parser.add_argument("--num", type=int, default=50_000, help="images")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--encodings", default="raw,png,jpeg")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    source = make_source(arguments.data, arguments.num)
    print(f"{source.name}, {arguments.num} images of {SHAPE}, batches of {BATCH}, one core")
    with tempfile.TemporaryDirectory() as folder:
        for encoding in arguments.encodings.split(","):
            storage = Storage.at(Path(folder) / encoding)
            manifest = pack(source, storage, encoding=encoding)
            report(encoding, storage, manifest, arguments.seconds)


def report(encoding: str, storage: Storage, manifest: Manifest, seconds: float) -> None:
    """Measure in turns, so that a busy machine slows all of them, and print the medians."""
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    stream = ImageStream(
        storage, manifest, split="train", batch_size=BATCH, seed=0, num_streams=64, window=512, validation_fraction=0
    )
    ways: dict[str, Iterator[int]] = {
        "ours": (len(batch.images) for batch in stream),
        "webdataset": webdataset_batches(storage, manifest),
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
    print(f"  ours / webdataset {median['ours'] / median['webdataset']:.1f}")
    print(f"  ours / plain read {median['ours'] / median['plain read']:.2f}")


def rate(images: Iterator[int], seconds: float) -> float:
    """Images a second; what was read ahead before does not count."""
    for _ in itertools.islice(images, 70):
        pass
    start, num_images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        num_images += next(images)
    return num_images / (time.perf_counter() - start)


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


def decode_raw(payload: bytes) -> np.ndarray:
    return np.frombuffer(payload, np.uint8).reshape(SHAPE)


def decode_image(payload: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(payload))).transpose(2, 0, 1)


def plain_reads(storage: Storage, manifest: Manifest) -> Iterator[int]:
    """The same files from end to end, a mebibyte at a time."""
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
