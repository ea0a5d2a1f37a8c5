"""The manifest of shards that others made: plain WebDataset tars, each read once from its first byte to its last.

A sample is the members KEY.png, KEY.jpg, KEY.npy or KEY.bin (its image) and KEY.cls, KEY.json or KEY.txt (its label,
if any), side by side. Payloads stay where they are: what is learned is where they begin, how long they are, what
their checksums are. An .npy member is a raw payload behind a header.
"""

import io
import logging
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ebmscale.data.decode import Shape, decoder
from ebmscale.data.manifest import Manifest, Shard
from ebmscale.data.tars import SequentialFile, TarSample, tar_samples
from ebmscale.errors import DataError
from ebmscale.storage import Storage

log = logging.getLogger(__name__)

ENCODINGS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "npy": "raw", "bin": "raw"}
TEST_WORDS = {"test", "val", "valid", "validation"}


class _Kind(NamedTuple):
    """What all images of a set share."""

    ending: str
    shape: Shape
    dtype: str


@dataclass
class _Found:
    """A shard being read; its labels are as they were written."""

    file: str
    keys: list[str] = field(default_factory=list)
    labels: list[str | int | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    crc32: list[int] = field(default_factory=list)
    num_bytes: int = 0
    sha256: str = ""
    num_damaged: int = 0
    damage: str = ""  # of the first damaged sample


def index(
    storage: Storage, *, image_shape: Shape | None = None, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Read every `*.tar` at an address and write the manifest beside them.

    The first sound image says what the set holds: encoding, shape (C, H, W) and dtype. Samples without an image, or
    with another one, are left out of the manifest, counted, and reported by shard as a warning. Shards with the word
    test, val, valid or validation in their names are the test part. Keys that occur in several shards get the
    shard's name before them.

    Args:
        storage: where the tars are; the manifest is written there.
        image_shape: of `.bin` members (uint8), which do not tell it.
        progress: called after every shard with (shards read, shards in all).

    Raises:
        DataError: there are no tars, one of them is truncated or no tar, or no sample can be used.
        StorageError: the storage fails, or cannot be written.
    """
    files = [name for name in storage.list() if name.endswith(".tar")]
    if not files:
        raise DataError(f"{storage.url} has no .tar files; give the folder that holds the WebDataset shards.")
    kind = _Kind("bin", image_shape, "uint8") if image_shape else None
    shards: list[_Found] = []
    for number, file in enumerate(files, 1):
        found, kind = _read_shard(storage, file, kind)
        shards.append(found)
        if found.num_damaged:
            log.warning(
                "%s: %d samples left out, the first because %s",
                storage.url_of(file), found.num_damaged, found.damage,
            )  # fmt: skip
        if progress:
            progress(number, len(files))
    if kind is None or not any(found.keys for found in shards):
        endings = ", ".join(f".{ending}" for ending in ENCODINGS)
        raise DataError(
            f"No sample at {storage.url} can be used (of {shards[0].file}: {shards[0].damage or 'it is empty'}); "
            f"a sample needs a member KEY with one of the endings {endings}."
        )
    manifest = _manifest(storage, [found for found in shards if found.keys], kind)
    manifest.save(storage)
    return manifest


def _read_shard(storage: Storage, file: str, kind: _Kind | None) -> tuple[_Found, _Kind | None]:
    """One pass over a tar; the first sound image of all shards decides the kind."""
    found, source = _Found(file), SequentialFile(storage, file)
    try:
        for sample in tar_samples(source, set(ENCODINGS)):
            try:
                kind = _add(found, sample, kind)
            except ValueError as error:
                found.num_damaged += 1
                found.damage = found.damage or f"{sample.key} {error}"
        source.read_to_end()
    except tarfile.TarError as error:
        raise DataError(
            f"Shard {storage.url_of(file)} cannot be read as a tar ({error}); get it again or take it away."
        ) from error
    found.num_bytes, found.sha256 = source.position, source.digest.hexdigest()
    if len(set(found.keys)) != len(found.keys):
        raise DataError(f"Shard {storage.url_of(file)} holds a key twice; give every sample a key of its own.")
    return found, kind


def _add(found: _Found, sample: TarSample, kind: _Kind | None) -> _Kind:
    """Put a sound sample into the shard's lists; ValueError says why it is none."""
    if sample.ending is None:
        raise ValueError("has no image")
    payload, skipped, own = _describe(sample, kind)
    kind = kind or own
    same = ENCODINGS[own.ending] == ENCODINGS[kind.ending] and own[1:] == kind[1:]
    if not same:
        raise ValueError(
            f"is {own.dtype} {own.shape} .{own.ending}, the set is {kind.dtype} {kind.shape} .{kind.ending}"
        )
    decoder(ENCODINGS[kind.ending], kind.dtype)(payload, kind.shape)
    found.keys.append(sample.key)
    found.labels.append(sample.label)
    found.offsets.append(sample.offset + skipped)
    found.sizes.append(len(payload))
    found.crc32.append(zlib.crc32(payload))
    return kind


def _describe(sample: TarSample, kind: _Kind | None) -> tuple[bytes, int, _Kind]:
    """An image's payload, the bytes of the member before it, and what it holds."""
    ending = sample.ending or ""
    if ending == "bin":
        if kind is None or kind.ending != "bin":
            raise ValueError("is a .bin image, whose shape is not known; give its C, H, W")
        return sample.payload, 0, kind
    if ending == "npy":
        return _describe_npy(sample.payload)
    try:
        with Image.open(io.BytesIO(sample.payload)) as image:
            return sample.payload, 0, _Kind(ending, (len(image.getbands()), image.height, image.width), "uint8")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"is no .{ending} image") from error


def _describe_npy(payload: bytes) -> tuple[bytes, int, _Kind]:
    file = io.BytesIO(payload)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, transposed, dtype = read_header(file)
    if (
        len(shape) != 3
        or transposed
        or dtype.newbyteorder("=").name not in ("uint8", "float32")
        or dtype.byteorder == ">"
    ):
        raise ValueError(f"is an array of {dtype} {shape}, not uint8 or float32 of C, H, W in C order")
    return payload[file.tell() :], file.tell(), _Kind("npy", shape, dtype.name)


def _manifest(storage: Storage, shards: list[_Found], kind: _Kind) -> Manifest:
    labels = {label for found in shards for label in found.labels if label is not None}
    if all(isinstance(label, int) for label in labels):
        classes = [str(number) for number in range(1 + max((int(label) for label in labels), default=-1))]
    else:
        classes = sorted(str(label) for label in labels)
    number_of = {name: number for number, name in enumerate(classes)}
    keys = [key for found in shards for key in found.keys]
    ambiguous = len(set(keys)) != len(keys)
    return Manifest(
        name=PurePosixPath(storage.url).name or "shards",
        format="webdataset",
        encoding=ENCODINGS[kind.ending],
        image_shape=kind.shape,
        dtype=kind.dtype,
        classes=classes,
        shards=[
            Shard(
                found.file,
                _part(found.file),
                found.num_bytes,
                found.sha256,
                [f"{found.file.removesuffix('.tar')}/{key}" for key in found.keys] if ambiguous else found.keys,
                [-1 if label is None else number_of[str(label)] for label in found.labels],
                found.offsets,
                found.sizes,
                found.crc32,
            )
            for found in shards
        ],
    )


def _part(file: str) -> str:
    words = "".join(letter if letter.isalpha() else " " for letter in file.lower()).split()
    return "test" if TEST_WORDS.intersection(words) else "train"
