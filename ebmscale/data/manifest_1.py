"""A manifest of version 1, which has the samples of all shards in lists; `ebmscale index` writes it as version 2."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from ebmscale.data.shard import Part, Shard
from ebmscale.data.shard_index import ShardIndex
from ebmscale.stored import Count, FileName, Sha256

_Text = Annotated[str, Field(max_length=1000)]
_Label = Annotated[int, Field(strict=True, ge=-1, lt=1_000_000)]
_Crc32 = Annotated[int, Field(strict=True, ge=0, lt=2**32)]


@dataclass(frozen=True)
class OldShard:
    """A shard with its samples, in their order in the file; the lists are those of `ShardIndex`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # for `as_form`

    num_samples: Count
    file: FileName
    part: Part
    num_bytes: Count
    sha256: Sha256
    keys: list[_Text]
    labels: list[_Label]
    offsets: list[Count]
    sizes: list[Count]
    crc32: list[_Crc32]

    def __post_init__(self) -> None:
        lists = (self.keys, self.labels, self.offsets, self.sizes, self.crc32)
        if len({len(values) for values in lists}) != 1:
            raise ValueError(f"the lists of shard {self.file} differ in length")
        if len(self.keys) != self.num_samples:
            raise ValueError(f"shard {self.file} lists {len(self.keys)} samples where it says {self.num_samples}")

    def converted(self) -> tuple[Shard, ShardIndex]:
        """The row and the index that say the same."""
        index = ShardIndex.of(self.keys, self.labels, self.offsets, self.sizes, self.crc32)
        return Shard.of(self.file, self.part, self.num_bytes, self.sha256, index, 0), index
