"""What a worker reads and keeps of a data set before its first batch."""

from dataclasses import dataclass

from ebmscale.config import RunConfig
from ebmscale.data.indexes import KEPT_BYTES, IndexesInMemory
from ebmscale.data.manifest import MANIFEST_BYTES, Manifest
from ebmscale.data.reader import WHOLE_BYTES
from ebmscale.data.shard_index import FRACTIONS
from ebmscale.data.split import has_validation_part

SHARD_BYTES = 1300
"""Memory for a shard's row of the manifest while the manifest is read (measured by tools/bench/scale.py)."""
OLD_SAMPLE_BYTES = 60
"""Memory of a sample, besides its key, if the manifest is of version 1 and all indexes are in memory."""


@dataclass(frozen=True)
class SetStart:
    """The start of the worker with the largest share: what it reads of the data set.

    Attributes:
        manifest_bytes: of the manifest, which every worker reads.
        num_shards: of the set.
        index_bytes: of all index files; 0 where the manifest is of version 1.
        first_bytes: of the windows of the first batch, with the indexes of their shards.
        verified_bytes: that one worker reads for `data.verify`.
        reads_all: why the indexes of all shards are read; None if they are not.
        memory_bytes: of manifest and indexes.
    """

    manifest_bytes: int
    num_shards: int
    index_bytes: int
    first_bytes: int
    verified_bytes: int
    reads_all: str | None
    memory_bytes: int

    @classmethod
    def of(cls, config: RunConfig, manifest: Manifest, num_streams: int) -> "SetStart":
        """The start of a worker that owns `num_streams` streams."""
        block, shards, size = config.data, manifest.shards, len(manifest.to_json())
        index_bytes = sum(shard.index_bytes for shard in shards)
        set_bytes = sum(shard.num_bytes for shard in shards)
        part = min(num_streams * block.shuffle_window / manifest.num_samples, 1.0)  # of the set, in the windows
        touched = min(num_streams + part * len(shards), len(shards))
        of_shards = set_bytes * part
        if set_bytes <= WHOLE_BYTES * len(shards):  # small shards are read as a whole
            of_shards = set_bytes * touched / len(shards)
        memory = SHARD_BYTES * len(shards)
        if isinstance(manifest.indexes, IndexesInMemory):
            memory += OLD_SAMPLE_BYTES * manifest.num_samples
        else:
            memory += min(KEPT_BYTES, index_bytes)
        return cls(
            size,
            len(shards),
            index_bytes,
            int(of_shards + touched * index_bytes / len(shards)),
            set_bytes if block.verify == "sha256" else 0,
            _why_all(config, manifest),
            memory,
        )

    def sentences(self) -> list[str]:
        """Sentences on the start, and on the first limit that a larger set would meet."""
        lines = [
            f"before its first batch a worker reads a manifest of {self.manifest_bytes / 1e6:,.1f} MB for "
            f"{self.num_shards:,} shard(s), and about {self.first_bytes / 1e6:,.1f} MB of samples and indexes"
        ]
        if self.reads_all:
            lines.append(
                f"one worker reads the indexes of all shards, {self.index_bytes / 1e6:,.1f} MB: {self.reads_all}"
            )
        if self.verified_bytes:
            lines.append(
                f"data.verify=sha256 reads the whole set first, {self.verified_bytes / 1e9:,.1f} GB, by one worker"
            )
        most = int(self.num_shards * MANIFEST_BYTES / self.manifest_bytes)
        lines.append(f"the first limit of a larger set is its manifest, which may have {most:,} such shards")
        return lines


def _why_all(config: RunConfig, manifest: Manifest) -> str | None:
    block = config.data
    if block.held_out.label is not None:
        return "a class is held out (data.held_out)"
    if block.validation_fraction not in FRACTIONS and not has_validation_part(manifest):
        usual = ", ".join(map(str, FRACTIONS))
        return f"the manifest counts validation samples for data.validation_fraction {usual} only"
    return None
