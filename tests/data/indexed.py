"""The shards of a manifest with their samples in memory."""

from ebmscale.data.shard import IndexedShard


def indexed(manifest):
    return [IndexedShard(row, manifest.index(number)) for number, row in enumerate(manifest.shards)]
