"""Bytes of an image, and images a second on one core, for each encoding: `python tools/bench/encodings.py ARRAYS.npz`.

The images are those of the set, also enlarged (enlarged images are smoother than real ones of that size).
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from ebmscale.data.decode import DECODERS
from ebmscale.data.encode import ENCODERS
from ebmscale.data.formats import open_source

NUM = {32: 8000, 64: 2000, 256: 200}  # images of each side
BLOCK_BYTES = 512  # of a tar: a header is one block, a payload is padded to whole blocks


def best_s(work: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    resized = Image.fromarray(image.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1).copy()


def main(path: str) -> None:
    images = [
        record.load() for record, _ in zip(open_source("npy", path).records(), range(max(NUM.values())), strict=False)
    ]
    print(f"{'side':>4} {'encoding':8} {'bytes':>8} {'in tar':>8} {'encoded/s':>10} {'decoded/s':>10} {'error':>6}")
    for side, num in NUM.items():
        some = [enlarged(image, side) for image in images[:num]]
        shape = (3, side, side)
        for name, encode in ENCODERS.items():
            payloads = [encode(image) for image in some]
            encode_s = best_s(lambda: [encode(image) for image in some], 1)  # noqa: B023 (called at once)
            decode_s = best_s(lambda: [DECODERS[name](payload, shape) for payload in payloads])  # noqa: B023
            sizes = np.array([len(payload) for payload in payloads])
            in_tar = BLOCK_BYTES * (1 + -(-sizes // BLOCK_BYTES))
            errors = [
                np.abs(DECODERS[name](p, shape) - i.astype(float)).mean() for p, i in zip(payloads, some, strict=True)
            ]
            print(
                f"{side:4} {name:8} {sizes.mean():8.0f} {in_tar.mean():8.0f} {num / encode_s:10,.0f} "
                f"{num / decode_s:10,.0f} {np.mean(errors):6.2f}"
            )


if __name__ == "__main__":
    main(sys.argv[1])
