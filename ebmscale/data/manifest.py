"""manifest.json: what a set of shards holds, down to the byte offset and checksum of every sample.

It is written last, so a folder with a manifest is a complete set. Reading is strict: another version, an unknown or
missing field, and lists of different lengths are refused.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field

from ebmscale.documents import read_json
from ebmscale.errors import DataError
from ebmscale.storage import Storage
from ebmscale.stored import Count, FileName, Sha256, as_form, check_regular, read_file

FILE = "manifest.json"
KIND = "ebmscale-shards"
VERSION = 1
CHECKED_AT_ONCE = 4  # shards
MANIFEST_BYTES = 512 * 2**20
SAMPLE_BYTES = 256 * 2**20  # of a decoded sample; more is no image, and would fill a worker's memory
MOST_CLASSES = 1_000_000
BLOCK_BYTES = 16 * 2**20  # of a shard that is checked, in memory at a time

Level = Literal["sha256", "size", "none"]
Part = Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]
LabelIndex = Annotated[int, Field(strict=True, ge=-1, lt=MOST_CLASSES)]
Crc32 = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Text = Annotated[str, Field(max_length=1000)]


@dataclass(frozen=True)
class Shard:
    """One tar file; the lists run over its samples, in their order in the file.

    Attributes:
        file: name below the set's address.
        part: "train", "validation" or "test" (see `parts.PARTS`), the official split.
        num_bytes: size of the file.
        sha256: of the whole file, hexadecimal.
        keys: unique in the set.
        labels: index into the classes; -1 if none.
        offsets: byte of the file at which a sample's image payload begins.
        sizes: bytes of the payload.
        crc32: of the payload.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # for `as_form`

    file: FileName
    part: Part
    num_bytes: Count
    sha256: Sha256
    keys: list[Text]
    labels: list[LabelIndex]
    offsets: list[Count]
    sizes: list[Count]
    crc32: list[Crc32]

    def __post_init__(self) -> None:
        lists = (self.keys, self.labels, self.offsets, self.sizes, self.crc32)
        if len({len(values) for values in lists}) != 1:
            raise ValueError(f"the lists of shard {self.file} differ in length")

    @property
    def num_samples(self) -> int:
        """Samples in the shard."""
        return len(self.keys)


@dataclass(frozen=True)
class Manifest:
    """A packed data set.

    Attributes:
        name: of the data set; its shards are NAME-PART-000000.tar and so on.
        format: the format it was packed from.
        encoding: how a payload becomes an image, a key of `decode.DECODERS`.
        image_shape: (C, H, W) of images; arrays may have any shape.
        dtype: of the decoded images, "uint8", or another where they are arrays.
        classes: names of the labels; empty if samples have none.
        shards: all shards, part by part.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # for `as_form`

    name: Text
    format: Text
    encoding: Text
    image_shape: tuple[int, ...]
    dtype: Text
    classes: Annotated[list[Text], Field(max_length=MOST_CLASSES)]
    shards: list[Shard]

    @property
    def sample_bytes(self) -> int:
        """Bytes of a decoded sample."""
        return math.prod(self.image_shape) * np.dtype(self.dtype).itemsize

    def counts(self) -> dict[str, int]:
        """Samples of each part."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.part] = counts.get(shard.part, 0) + shard.num_samples
        return counts

    def summary(self) -> str:
        """One line for people: name, samples of each part, classes, shards, encoding."""
        counts = ", ".join(f"{count:,} {part}" for part, count in self.counts().items())
        unlabelled = sum(label < 0 for shard in self.shards for label in shard.labels)
        labels = f"{len(self.classes):,} class(es)" if self.classes else "no labels"
        if self.classes and unlabelled:
            labels += f", {unlabelled:,} without label"
        return f"{self.name}, {counts}, {labels}, {len(self.shards)} shard(s), {self.encoding}"

    def identity(self) -> str:
        """A digest of what the set holds, the same wherever it lies: another image or label gives another digest."""
        shards = [[one.part, one.num_samples, one.num_bytes, one.sha256] for one in self.shards]
        labels = [hashlib.sha256(json.dumps(one.labels).encode()).hexdigest() for one in self.shards]
        content = [self.encoding, list(self.image_shape), self.dtype, self.classes, shards, labels]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> str:
        """Compact JSON, the same for equal manifests."""
        shards = [{"num_samples": shard.num_samples} | vars(shard) for shard in self.shards]
        fields = {"kind": KIND, "version": VERSION} | vars(self) | {"shards": shards}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """The inverse of `to_json`; DataError with the reason where the text is no manifest of this version."""
        fields = read_json(text, "it", DataError, max_bytes=MANIFEST_BYTES)
        if not isinstance(fields, dict) or fields.pop("kind", None) != KIND:
            raise DataError(f'it is not of kind "{KIND}"')
        version = fields.pop("version", None)
        if version != VERSION:
            raise DataError(f"it is of version {version!r:.20}, this program reads version {VERSION}")
        counts = [_take_count(shard) for shard in _listed(fields.get("shards"))]
        fields["image_shape"] = _shape(fields.get("image_shape"))
        manifest = as_form(fields, cls, "a field is missing, unknown or of the wrong form: it", DataError)
        _check(manifest, counts)
        return manifest

    def save(self, storage: Storage) -> None:
        """Publish it beside its shards, which must all be written before."""
        storage.publish(FILE, self.to_json().encode())

    @classmethod
    def load(cls, storage: Storage) -> "Manifest":
        """The manifest of the shards at an address.

        Raises:
            DataError: nothing is there, something else is there, or the manifest is damaged.
        """
        if not storage.exists(FILE):
            what = f"has no {FILE}" if storage.exists() else "does not exist"
            raise DataError(f"{storage.url} {what}: write shards there with `ebmscale pack FORMAT SRC {storage.url}`.")
        text = read_file(storage, FILE, MANIFEST_BYTES, DataError)
        try:
            return cls.from_json(text)
        except DataError as error:
            raise DataError(
                f"{storage.url_of(FILE)} does not describe shards of ebmscale ({str(error).rstrip('.')}); "
                "give the address of a set written by `ebmscale pack FORMAT SRC URL`, or pack it again."
            ) from error


def _listed(shards: Any) -> list[dict[str, Any]]:
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        raise DataError("a field is missing, unknown or of the wrong form: shards is no list of shards")
    if not shards:
        raise DataError("it lists no shards")
    return shards


def _take_count(shard: dict[str, Any]) -> Any:
    if "num_samples" not in shard:
        raise DataError("a field is missing, unknown or of the wrong form: a shard has no num_samples")
    return shard.pop("num_samples")


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise DataError(f"the shape of its samples, {str(sizes)[:60]}, is no list of sizes")
    return tuple(sizes)


def _check(manifest: Manifest, counts: list[Any]) -> None:
    """Checks the fields against each other; DataError says what does not fit."""
    try:
        kind = np.dtype(manifest.dtype)
    except (TypeError, ValueError, SyntaxError):
        raise DataError(f"its samples are of no type of numbers, {manifest.dtype[:20]!r}") from None
    if kind.kind not in "uif" or kind.name != manifest.dtype:
        raise DataError(f"its samples are of no type of numbers, {manifest.dtype[:20]!r}")
    if manifest.sample_bytes > SAMPLE_BYTES:
        raise DataError(
            f"a sample of {manifest.dtype} {manifest.image_shape} has {manifest.sample_bytes:,} bytes, "
            f"and at most {SAMPLE_BYTES:,} are read"
        )
    if len({shard.file for shard in manifest.shards}) != len(manifest.shards):
        raise DataError("it lists a shard twice")
    for shard, count in zip(manifest.shards, counts, strict=True):
        if shard.num_samples != count:
            raise DataError(f"shard {shard.file} lists {shard.num_samples} samples where it says {str(count)[:20]}")
        _check_shard(manifest, shard)
    if not sum(shard.num_samples for shard in manifest.shards):
        raise DataError("it lists no samples")


def _check_shard(manifest: Manifest, shard: Shard) -> None:
    if max(shard.labels, default=-1) >= len(manifest.classes):
        raise DataError(
            f"shard {shard.file} has label {max(shard.labels)} where the set has {len(manifest.classes)} classes"
        )
    if any(offset + size > shard.num_bytes for offset, size in zip(shard.offsets, shard.sizes, strict=True)):
        raise DataError(f"shard {shard.file} has {shard.num_bytes} bytes, and the offset of a sample lies beyond them")
    if manifest.encoding == "raw" and set(shard.sizes) - {manifest.sample_bytes}:
        raise DataError(f"shard {shard.file} has samples of another size than {manifest.dtype} {manifest.image_shape}")
    if max(shard.sizes, default=0) > SAMPLE_BYTES:
        raise DataError(f"shard {shard.file} has a sample of {max(shard.sizes):,} bytes")


class ShardCheck(NamedTuple):
    """What a check of one shard found; `problem` is None if the shard is as the manifest says."""

    shard: str
    num_samples: int
    num_bytes: int
    problem: str | None


def inspect_shards(storage: Storage, level: Level = "sha256") -> Iterator[ShardCheck]:
    """Check the file of every shard at an address, a few at once; DataError if the manifest is unusable."""
    shards = Manifest.load(storage).shards
    for shard, problem in zip(shards, _problems(storage, shards, level), strict=True):
        yield ShardCheck(shard.file, shard.num_samples, shard.num_bytes, problem)


def verify(
    storage: Storage, manifest: Manifest, level: Level, progress: Callable[[str], None] = lambda shard: None
) -> None:
    """Check the shards against the manifest.

    Args:
        storage: where the shards are.
        manifest: what they should be.
        level: "sha256" reads every byte, "size" asks for the files' sizes, "none" checks nothing.
        progress: called with the name of every shard that was checked; an exception of it ends the check.

    Raises:
        DataError: a shard is missing, has another size or other content; names the first such shard.
    """
    for shard, problem in zip(manifest.shards, _problems(storage, manifest.shards, level), strict=True):
        if problem:
            raise DataError(
                f"Shard {storage.url_of(shard.file)} {problem}; copy it again from where it is whole, "
                f"or delete {storage.url_of(FILE)} and pack the set again."
            )
        progress(shard.file)


def _problems(storage: Storage, shards: list[Shard], level: Level) -> Iterator[str | None]:
    """What is wrong with each shard, in their order; a block of `CHECKED_AT_ONCE` is in memory."""
    with ThreadPoolExecutor(CHECKED_AT_ONCE, thread_name_prefix="verify") as pool:
        try:
            yield from pool.map(lambda shard: _problem(storage, shard, level), shards)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _problem(storage: Storage, shard: Shard, level: Level) -> str | None:
    if level == "none":
        return None
    if not storage.exists(shard.file):
        return "is missing"
    check_regular(storage, shard.file, DataError)
    num_bytes = storage.size(shard.file)
    if num_bytes != shard.num_bytes:
        return f"has {num_bytes} bytes where the manifest says {shard.num_bytes}"
    if level == "sha256" and _digest(storage, shard) != shard.sha256:
        return "is damaged (its sha256 differs from the manifest's)"
    return None


def _digest(storage: Storage, shard: Shard) -> str:
    digest = hashlib.sha256()
    for start in range(0, shard.num_bytes, BLOCK_BYTES):
        digest.update(storage.read_range(shard.file, start, min(BLOCK_BYTES, shard.num_bytes - start)))
    return digest.hexdigest()
