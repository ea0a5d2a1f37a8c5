"""A row of the manifest: one shard, in a few numbers."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from ebmscale.data.shard_index import FRACTIONS, ShardIndex, index_file
from ebmscale.stored import Count, FileName, Sha256

Part = Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]
Counts = Annotated[tuple[Count, ...], Field(min_length=len(FRACTIONS), max_length=len(FRACTIONS))]

SAMPLE_BYTES = 256 * 2**20  # of a sample; more is not an image, and would fill a worker's memory


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file.

    Attributes:
        file: name below the set's address.
        part: "train", "validation" or "test" (see `parts.PARTS`), the official split.
        num_samples: in it.
        num_bytes: size of the file.
        sha256: of the whole file, hexadecimal.
        num_unlabelled: samples without a label.
        labels_sha256: of the labels, see `ShardIndex.labels_digest`.
        index_bytes: size of the index file; 0 where the set has none.
        below: for each of `shard_index.FRACTIONS`, how many keys have a hash below it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # for `as_form`

    file: FileName
    part: Part
    num_samples: Count
    num_bytes: Count
    sha256: Sha256
    num_unlabelled: Count
    labels_sha256: Sha256
    index_bytes: Count
    below: Counts

    @classmethod
    def of(cls, file: str, part: str, num_bytes: int, sha256: str, index: ShardIndex, index_bytes: int) -> "Shard":
        """The row of a shard with this index."""
        unlabelled, below = int((index.labels < 0).sum()), index.below(FRACTIONS)
        digest = index.labels_digest()
        return cls(file, part, len(index), num_bytes, sha256, unlabelled, digest, index_bytes, below)

    @property
    def index_file(self) -> str:
        """The name of its index file."""
        return index_file(self.file)

    def check(self, index: ShardIndex, num_classes: int, payload_bytes: int | None) -> None:
        """Checks an index against this row and the set.

        Args:
            index: what claims to describe the shard.
            num_classes: of the set.
            payload_bytes: of every sample; None if they differ.

        Raises:
            ValueError: it does not fit; the text continues a sentence about the index.
        """
        if len(index) != self.num_samples or index.labels_digest() != self.labels_sha256:
            raise ValueError("does not fit its shard, because it has other samples or labels than the manifest says")
        if len(index) == 0:
            return
        for label in (index.labels.min(), index.labels.max()):
            if not -1 <= label < num_classes:
                raise ValueError(f"has label {label} where the set has {num_classes} classes")
        if not ((index.hashes >= 0) & (index.hashes < 1)).all():  # also where one is NaN
            raise ValueError("has a hash that is not in [0, 1)")
        if min(index.offsets.min(), index.sizes.min()) < 0 or (index.offsets > self.num_bytes - index.sizes).any():
            raise ValueError(f"has the offset of a sample beyond the {self.num_bytes} bytes of its shard")
        if payload_bytes is not None and (index.sizes != payload_bytes).any():
            raise ValueError(f"has samples of another size than {payload_bytes:,} bytes")
        if index.sizes.max() > SAMPLE_BYTES:
            raise ValueError(f"has a sample of {index.sizes.max():,} bytes")


@dataclass(frozen=True, eq=False)
class IndexedShard:
    """A shard with its samples in memory."""

    row: Shard
    index: ShardIndex

    @classmethod
    def of(cls, file: str, part: str, num_bytes: int, sha256: str, index: ShardIndex) -> "IndexedShard":
        """A shard whose index file is made of `index`."""
        return cls(Shard.of(file, part, num_bytes, sha256, index, len(index.to_bytes(sha256))), index)

    @property
    def index_data(self) -> bytes:
        """The content of the index file."""
        return self.index.to_bytes(self.row.sha256)

    @property
    def file(self) -> str:
        """See `Shard`."""
        return self.row.file

    @property
    def part(self) -> str:
        """See `Shard`."""
        return self.row.part

    @property
    def num_samples(self) -> int:
        """See `Shard`."""
        return self.row.num_samples

    @cached_property
    def keys(self) -> list[str]:
        """Of the samples."""
        return self.index.texts()

    @cached_property
    def labels(self) -> list[int]:
        """Of the samples; -1 if none."""
        return self.index.labels.tolist()

    @cached_property
    def crc32(self) -> list[int]:
        """Of the payloads."""
        return self.index.crc32.tolist()
