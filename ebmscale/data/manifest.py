"""manifest.json: what a set of shards holds, down to the byte offset and checksum of every sample.

It is written last, so a folder with a manifest is a complete set. Reading is strict: another version, an unknown or
missing field, or lists that do not fit each other are refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ebmscale.errors import DataError
from ebmscale.storage import Storage

FILE = "manifest.json"
KIND = "ebmscale-shards"
VERSION = 1
CHECKED_AT_ONCE = 4  # shards

Level = Literal["sha256", "size", "none"]


@dataclass(frozen=True)
class Shard:
    """One tar file; the lists run over its samples, in their order in the file.

    Attributes:
        file: name below the set's address.
        part: "train" or "test", the official split.
        num_bytes: size of the file.
        sha256: of the whole file, hexadecimal.
        keys: unique in the set.
        labels: index into the classes; -1 where none.
        offsets: byte of the file at which a sample's image payload begins.
        sizes: bytes of the payload.
        crc32: of the payload.
    """

    file: str
    part: str
    num_bytes: int
    sha256: str
    keys: list[str]
    labels: list[int]
    offsets: list[int]
    sizes: list[int]
    crc32: list[int]

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
        classes: names of the labels; empty where samples have none.
        shards: all shards, part by part.
    """

    name: str
    format: str
    encoding: str
    image_shape: tuple[int, ...]
    dtype: str
    classes: list[str]
    shards: list[Shard]

    def counts(self) -> dict[str, int]:
        """Samples of each part."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.part] = counts.get(shard.part, 0) + shard.num_samples
        return counts

    def summary(self) -> str:
        """One line for people: name, samples of each part, shards, encoding."""
        counts = ", ".join(f"{count:,} {part}" for part, count in self.counts().items())
        return f"{self.name}, {counts}, {len(self.shards)} shard(s), {self.encoding}"

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
    def from_json(cls, text: str) -> "Manifest":
        """The inverse of `to_json`; ValueError with the reason where the text is no manifest of this version."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("kind", None) != KIND:
            raise ValueError(f'it is not of kind "{KIND}"')
        version = fields.pop("version", None)
        if version != VERSION:
            raise ValueError(f"it is of version {version}, this program reads version {VERSION}")
        try:
            fields["shards"] = [_shard(shard) for shard in fields["shards"]]
            return cls(**fields | {"image_shape": _shape(fields["image_shape"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"a field is missing, unknown or of the wrong form: {error}") from error

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
        try:
            return cls.from_json(storage.read_bytes(FILE).decode())
        except ValueError as error:  # also what json and UTF-8 decoding raise
            raise DataError(
                f"{storage.url_of(FILE)} does not describe shards of ebmscale ({error}); "
                "give the address of a set written by `ebmscale pack FORMAT SRC URL`, or pack it again."
            ) from error


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"the shape of its samples, {sizes}, is no list of sizes")
    return tuple(sizes)


def _shard(fields: dict[str, Any]) -> Shard:
    num_samples = fields.pop("num_samples")
    shard = Shard(**fields)
    if shard.num_samples != num_samples:
        raise ValueError(f"shard {shard.file} lists {shard.num_samples} samples where it says {num_samples}")
    return shard


class Finding(NamedTuple):
    """What a check of one shard found; `problem` is None where the shard is as the manifest says."""

    shard: str
    num_samples: int
    num_bytes: int
    problem: str | None


def inspect_shards(storage: Storage, level: Level = "sha256") -> Iterator[Finding]:
    """Check every shard of the set at an address, a few at once; DataError where the manifest is unusable."""
    shards = Manifest.load(storage).shards
    for shard, problem in zip(shards, _problems(storage, shards, level), strict=True):
        yield Finding(shard.file, shard.num_samples, shard.num_bytes, problem)


def verify(
    storage: Storage, manifest: Manifest, level: Level, progress: Callable[[str], None] = lambda shard: None
) -> None:
    """Check the shards against the manifest.

    Args:
        storage: where the shards are.
        manifest: what they should be.
        level: "sha256" reads every byte, "size" asks for the files' sizes, "none" checks nothing.
        progress: called with the name of every shard that was checked; what it raises ends the check.

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
    """What is wrong with each shard, in their order; the bytes of `CHECKED_AT_ONCE` are in memory."""
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
    num_bytes = storage.size(shard.file)
    if num_bytes != shard.num_bytes:
        return f"has {num_bytes} bytes where the manifest says {shard.num_bytes}"
    if level == "sha256" and hashlib.sha256(storage.read_bytes(shard.file)).hexdigest() != shard.sha256:
        return "is damaged (its sha256 differs from the manifest's)"
    return None
