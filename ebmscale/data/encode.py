"""Records to payload bytes, in parallel and in order. Shapes: C channels, H height, W width."""

import io
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from ebmscale.data.decode import POSTERIORS
from ebmscale.data.formats import Record, Source
from ebmscale.data.left_out import LeftOut
from ebmscale.errors import ConfigError, DataError

JPEG_QUALITY = 95  # with full colour resolution (4:4:4)
RAW_BYTES = 64 << 10  # images up to this size are stored raw by default, as that is the fastest to read
ENDINGS = {"raw": "bin", "png": "png", "jpeg": "jpg", POSTERIORS: "bin"}  # of a payload's name in the shard
_CHUNK_SAMPLES = 64  # what a thread encodes at once,
_CHUNK_BYTES = 4 << 20  # or fewer, so that their arrays stay within this


class Encoded(NamedTuple):
    """A record whose image has become bytes."""

    key: str
    payload: bytes
    label: int
    part: str


def encode_raw(image: np.ndarray) -> bytes:
    """The numbers in the order of their dimensions, little-endian."""
    return image.astype(image.dtype.newbyteorder("<"), copy=False).tobytes()


def encode_png(image: np.ndarray) -> bytes:
    """A PNG file of a uint8 image (1 or 3, H, W)."""
    return _encode_with_pillow(image, "PNG")


def encode_jpeg(image: np.ndarray) -> bytes:
    """A JPEG file of a uint8 image (1 or 3, H, W), of quality `JPEG_QUALITY`; it loses some detail."""
    return _encode_with_pillow(image, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _encode_with_pillow(image: np.ndarray, kind: str, **options: int) -> bytes:
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **options)
    return file.getvalue()


ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "raw": encode_raw,
    "png": encode_png,
    "jpeg": encode_jpeg,
    POSTERIORS: encode_raw,
}


def choose_encoding(source: Source, wanted: str | None = None) -> str:
    """The encoding wanted, or the default: raw for numbers and for images up to `RAW_BYTES`, PNG for larger ones.

    Raises:
        ConfigError: there is no such encoding, or it cannot hold such images.
    """
    pictures = source.dtype == "uint8" and len(source.image_shape) == 3 and source.image_shape[0] in (1, 3)
    if source.posteriors:
        if wanted not in (None, "raw"):
            raise ConfigError(f"{wanted} holds images, but the samples are means and standard deviations; choose raw.")
        return POSTERIORS
    if wanted is None:
        return "png" if pictures and math.prod(source.image_shape) > RAW_BYTES else "raw"
    known = [name for name in ENCODERS if name != POSTERIORS]
    if wanted not in known:
        raise ConfigError(f"There is no encoding {wanted!r}; choose one of {', '.join(known)}.")
    if wanted != "raw" and not pictures:
        raise ConfigError(
            f"{wanted} holds bytes of 1 or 3 channels, but the samples are {source.dtype} {source.image_shape}; "
            "choose raw."
        )
    return wanted


def encode_all(
    records: Iterator[Record], source: Source, encoding: str, num_threads: int | None = None
) -> Generator[Encoded | LeftOut, None, None]:
    """Load and encode records in threads; they come out in their order, and only a bounded number is in memory.

    A record whose file is damaged, or whose image does not fit the source, comes out as a `LeftOut`.

    Threads and not processes: what takes time in Pillow (decoding, resizing, compressing PNG) runs without Python's
    lock, and nothing has to be started or sent. Writing JPEG keeps the lock, but is fast.

    Args:
        records: what to encode; iterated in the caller's thread.
        source: what the records must fit.
        encoding: a key of `ENCODERS`.
        num_threads: None: one for every core that this process may use.

    Raises:
        DataError: the key of a record cannot be stored.
    """
    num_threads = num_threads or _num_cores()
    sample_bytes = math.prod(source.image_shape) * np.dtype(source.dtype).itemsize
    chunk_samples = max(1, min(_CHUNK_SAMPLES, _CHUNK_BYTES // sample_bytes))
    waiting: deque[Future[list[Encoded | LeftOut]]] = deque()
    with ThreadPoolExecutor(num_threads, "encode") as pool:
        while chunk := list(itertools.islice(records, chunk_samples)):
            waiting.append(pool.submit(_encode_chunk, chunk, source, ENCODERS[encoding]))
            if len(waiting) > 2 * num_threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _num_cores() -> int:
    """Cores that this process may use; not every system can say which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encode_chunk(
    records: list[Record], source: Source, encode: Callable[[np.ndarray], bytes]
) -> list[Encoded | LeftOut]:
    chunk: list[Encoded | LeftOut] = []
    for record in records:
        _check_key(record, source)
        try:
            image = _checked(record, source)
        except DataError as error:
            chunk.append(LeftOut.of(record, str(error)))
        else:
            chunk.append(Encoded(record.key, encode(image), record.label, record.part))
    return chunk


def why_left_out(record: Record, source: Source) -> str | None:
    """Why a record cannot be used; None if it can."""
    try:
        _checked(record, source)
    except DataError as error:
        return str(error)
    return None


def _check_key(record: Record, source: Source) -> None:
    """Refuse a key that could not be read back: WebDataset ends a key at its first dot."""
    if "." in record.key or len(record.key) > 90 or not record.key.isascii():
        raise DataError(
            f"The key {record.key!r} of {source.name} must be ASCII, without dots, and at most 90 characters long."
        )


def _checked(record: Record, source: Source) -> np.ndarray:
    """The image of a record; DataError if its file is damaged, or it could not be read back unchanged."""
    image = record.load()
    if image.shape != source.image_shape or image.dtype.name != source.dtype:
        raise DataError(
            f"Sample {record.key} of {source.name} is {image.dtype.name} {image.shape}, "
            f"but the set is {source.dtype} {source.image_shape}; resize or convert it (a folder of images: give "
            "a size)."
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(f"Sample {record.key} of {source.name} holds NaN or infinity; take it out of the source.")
    if source.posteriors and (image[1] < 0).any():
        raise DataError(
            f"Sample {record.key} of {source.name} has a negative standard deviation; give std, not its log."
        )
    return image
