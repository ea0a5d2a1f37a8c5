"""manifest.json: what a set of shards holds, with a row for each shard. The samples are in an index file a shard.

It is written last, so a folder with a manifest is a complete set. Reading is strict: another version, an unknown or
missing field, and columns of different lengths are refused. A manifest of version 1, which has lists of all samples, is
read too (see `manifest_1`).
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from ebmscale.data.decode import POSTERIORS, UNCOMPRESSED
from ebmscale.data.indexes import Indexes, IndexesInMemory, IndexFiles
from ebmscale.data.lowest import LowestSamples, LowSample
from ebmscale.data.manifest_1 import OldShard
from ebmscale.data.shard import SAMPLE_BYTES, Counts, Part, Shard
from ebmscale.data.shard_index import FRACTIONS, INDEX_BYTES, ShardIndex
from ebmscale.documents import read_json
from ebmscale.errors import DataError
from ebmscale.storage import Storage
from ebmscale.stored import Count, FileName, Sha256, as_form, read_file

FILE = "manifest.json"
KIND = "ebmscale-shards"
VERSION = 2
MANIFEST_BYTES = 512 * 2**20
MOST_CLASSES = 1_000_000
MOST_SAMPLES = 2**53
_WRONG = "a field is missing, unknown or of the wrong form"

Text = Annotated[str, Field(max_length=1000)]
Hash = Annotated[float, Field(strict=True, ge=0, lt=1)]
Label = Annotated[int, Field(strict=True, ge=-1, lt=MOST_CLASSES)]
Crc32 = Annotated[int, Field(strict=True, ge=0, lt=2**32)]


@dataclass(frozen=True)
class _Table:
    """The shards by column, for `as_form`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    file: list[FileName]
    part: list[Part]
    num_samples: list[Count]
    num_bytes: list[Count]
    sha256: list[Sha256]
    num_unlabelled: list[Count]
    labels_sha256: list[Sha256]
    index_bytes: list[Count]
    below: list[Counts]

    def __post_init__(self) -> None:
        if len({len(column) for column in vars(self).values()}) != 1:
            raise ValueError("the columns of shards differ in length")

    def rows(self) -> list[Shard]:
        """The shards."""
        return [Shard(*row) for row in zip(*vars(self).values(), strict=True)]


@dataclass(frozen=True)
class SetAbout:
    """The fields of a manifest that do not depend on its shards; see `Manifest`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Text
    format: Text
    encoding: Text
    image_shape: tuple[int, ...]
    dtype: Text
    classes: Annotated[list[Text], Field(max_length=MOST_CLASSES)]


_Lowest = dict[Part, list[tuple[Count, Count, Text, Hash, Label, Count, Count, Crc32]]]


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
        lowest: of each part, the samples whose keys hash lowest, `lowest.NUM_LOWEST` at most.
        indexes: the samples of each shard.
        counted: what `split` counted by reading indexes.
    """

    name: str
    format: str
    encoding: str
    image_shape: tuple[int, ...]
    dtype: str
    classes: list[str]
    shards: list[Shard]
    lowest: dict[str, list[LowSample]]
    indexes: Indexes = field(compare=False, repr=False)
    counted: dict[Any, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def sample_bytes(self) -> int:
        """Bytes of a decoded sample."""
        return math.prod(self.image_shape) * np.dtype(self.dtype).itemsize

    @property
    def kind_of_samples(self) -> tuple[str, tuple[int, ...]]:
        """What the samples are, in a word, and the shape of one: images, latents as posteriors, or arrays."""
        if self.encoding == POSTERIORS:
            return "posteriors", self.image_shape[1:]
        return ("images" if self.dtype == "uint8" else "arrays"), self.image_shape

    @property
    def num_samples(self) -> int:
        """Samples of all parts."""
        return sum(shard.num_samples for shard in self.shards)

    def index(self, number: int) -> ShardIndex:
        """The samples of shard number `number`; raises as `Indexes.fetch`."""
        return self.indexes.fetch([number])[number]

    def counts(self) -> dict[str, int]:
        """Samples of each part."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.part] = counts.get(shard.part, 0) + shard.num_samples
        return counts

    def num_unlabelled(self) -> int:
        """Samples without a label."""
        return sum(shard.num_unlabelled for shard in self.shards)

    def summary(self) -> str:
        """One line for people: name, samples of each part, classes, shards, encoding."""
        counts = ", ".join(f"{count:,} {part}" for part, count in self.counts().items())
        labels = f"{len(self.classes):,} class(es)" if self.classes else "no labels"
        if self.classes and self.num_unlabelled():
            labels += f", {self.num_unlabelled():,} without label"
        return f"{self.name}, {counts}, {labels}, {len(self.shards)} shard(s), {self.encoding}"

    def identity(self) -> str:
        """A digest of what the set holds, the same wherever it lies: another image or label gives another digest."""
        shards = [[one.part, one.num_samples, one.num_bytes, one.sha256] for one in self.shards]
        labels = [one.labels_sha256 for one in self.shards]
        content = [self.encoding, list(self.image_shape), self.dtype, self.classes, shards, labels]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> str:
        """Compact JSON, the same for equal manifests."""
        head = {name: getattr(self, name) for name in _names(SetAbout)}
        table = {name: [getattr(shard, name) for shard in self.shards] for name in _names(_Table)}
        whole = {"kind": KIND, "version": VERSION, **head, "fractions": FRACTIONS, "shards": table}
        return json.dumps(whole | {"lowest": self.lowest}, separators=(",", ":"))

    @classmethod
    def of(cls, shards: Sequence[tuple[Shard, ShardIndex]], **about: Any) -> "Manifest":
        """The manifest of shards whose indexes are in memory; `about` has its other fields."""
        lowest = LowestSamples()
        for number, (shard, index) in enumerate(shards):
            lowest.add(shard.part, number, index)
        in_memory = IndexesInMemory([index for _, index in shards])
        return cls(shards=[shard for shard, _ in shards], lowest=lowest.found(), indexes=in_memory, **about)

    @classmethod
    def from_json(cls, text: str | bytes, storage: Storage) -> "Manifest":
        """The inverse of `to_json`, for shards in a storage; DataError with the reason where it is not a manifest."""
        given = read_json(text, "it", DataError, max_bytes=MANIFEST_BYTES)
        if not isinstance(given, dict) or given.pop("kind", None) != KIND:
            raise DataError(f'it is not of kind "{KIND}"')
        version = given.pop("version", None)
        if version not in (1, VERSION):
            raise DataError(f"its version is {version!r:.20}, but this program reads versions 1 and {VERSION}")
        shards, lowest = given.pop("shards", None), given.pop("lowest", None)
        fractions = given.pop("fractions", None)
        given["image_shape"] = _shape(given.get("image_shape"))
        head = as_form(given, SetAbout, f"{_WRONG}: it", DataError)
        _check_head(head)
        if version == 1:
            found = cls.of(_old_shards(head, shards), **vars(head))
        else:
            if fractions != list(FRACTIONS):
                raise DataError("its counts are for other fractions than those of this program")
            rows = as_form(shards, _Table, f"{_WRONG}: shards", DataError).rows()
            low = as_form(lowest, _Lowest, f"{_WRONG}: lowest", DataError)
            samples = {part: [LowSample(*one) for one in of_part] for part, of_part in low.items()}
            indexes = IndexFiles(storage, rows, len(head.classes), _payload_bytes(head))
            found = cls(**vars(head), shards=rows, lowest=samples, indexes=indexes)
        _check(found)
        return found

    def save(self, storage: Storage) -> None:
        """Publish it beside its shards and their index files, which must all be written before.

        Raises:
            DataError: it could not be read again.
        """
        text = self.to_json()
        try:
            self.from_json(text, storage)
        except DataError as error:
            raise DataError(
                f"The manifest of {storage.url} could not be read again ({str(error).rstrip('.')}); shorten the names "
                "of the set, its files and its classes."
            ) from error
        storage.publish(FILE, text.encode())

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
            return cls.from_json(text, storage)
        except DataError as error:
            raise DataError(
                f"{storage.url_of(FILE)} does not describe shards of ebmscale ({str(error).rstrip('.')}); "
                "give the address of a set written by `ebmscale pack FORMAT SRC URL`, or pack it again."
            ) from error


def _names(form: type[SetAbout] | type[_Table]) -> list[str]:
    return [one.name for one in fields(form)]


def _payload_bytes(head: SetAbout) -> int | None:
    """Bytes of every payload; None if they differ."""
    return math.prod(head.image_shape) * np.dtype(head.dtype).itemsize if head.encoding in UNCOMPRESSED else None


def _old_shards(head: SetAbout, shards: Any) -> list[tuple[Shard, ShardIndex]]:
    """The shards of a manifest of version 1."""
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        raise DataError(f"{_WRONG}: shards is not a list of shards")
    found = []
    for listed in shards:
        shard, index = as_form(listed, OldShard, f"{_WRONG}: it", DataError).converted()
        try:
            shard.check(index, len(head.classes), _payload_bytes(head))
        except ValueError as error:
            raise DataError(f"shard {shard.file} {error}") from error
        found.append((shard, index))
    return found


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise DataError(f"the shape of its samples, {str(sizes)[:60]}, is not a list of sizes")
    return tuple(sizes)


def _check_head(head: SetAbout) -> None:
    try:
        kind = np.dtype(head.dtype)
    except (TypeError, ValueError, SyntaxError):
        raise DataError(f"the type of its samples, {head.dtype[:20]!r}, is not a type of numbers") from None
    if kind.kind not in "uif" or kind.name != head.dtype:
        raise DataError(f"the type of its samples, {head.dtype[:20]!r}, is not a type of numbers")
    num_bytes = math.prod(head.image_shape) * kind.itemsize
    if num_bytes > SAMPLE_BYTES:
        raise DataError(
            f"a sample of {head.dtype} {head.image_shape} has {num_bytes:,} bytes, "
            f"and at most {SAMPLE_BYTES:,} are read"
        )


def _check(manifest: Manifest) -> None:
    """Checks the fields against each other; DataError says what does not fit."""
    shards = manifest.shards
    if not shards:
        raise DataError("it lists no shards")
    if len({shard.file for shard in shards}) != len(shards):
        raise DataError("it lists a shard twice")
    if not 0 < manifest.num_samples < MOST_SAMPLES:
        raise DataError(f"it lists {manifest.num_samples or 'no'} samples")
    for shard in shards:
        if shard.index_bytes > INDEX_BYTES:
            raise DataError(f"the index of shard {shard.file} has {shard.index_bytes:,} bytes")
        if any(count > shard.num_samples for count in (shard.num_unlabelled, *shard.below)):
            raise DataError(f"shard {shard.file} counts more samples than its {shard.num_samples}")
    for part, samples in manifest.lowest.items():
        for one in samples:
            if not one.shard < len(shards) or shards[one.shard].part != part:
                raise DataError(f"{one.key[:60]!r} is not in part {part}")
            if one.sample >= shards[one.shard].num_samples or one.label >= len(manifest.classes):
                raise DataError(f"{one.key[:60]!r} does not fit its shard")
            if one.offset + one.size > shards[one.shard].num_bytes or one.size > SAMPLE_BYTES:
                raise DataError(f"{one.key[:60]!r} lies beyond its shard")
