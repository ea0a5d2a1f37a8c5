"""The finished shards of an interrupted pack: one note for each below .partial/, deleted when the set is complete.

.partial/plan.json says what is being packed and how; .partial/000000.json and so on are the finished shards' rows of
the manifest, each written after its shard and the index of it. So a shard with a note is complete.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ebmscale.data.shard import IndexedShard, Shard
from ebmscale.data.shard_index import ShardIndex
from ebmscale.errors import DataError, NotFoundError
from ebmscale.storage import Storage
from ebmscale.stored import read_document

FOLDER = ".partial"
_PLAN = f"{FOLDER}/plan.json"


class Partial:
    """The notes at an address.

    Args:
        storage: where the shards go.
        plan: all that the shards' bytes depend on, as JSON values.

    Raises:
        DataError: an unfinished pack of something else is there, of which at least one shard is finished.
    """

    def __init__(self, storage: Storage, plan: dict[str, Any]):
        self._storage = storage
        self.shards: list[Shard] = []
        self._plan = plan = json.loads(json.dumps(plan))
        changed = self._changed(plan) if storage.exists(_PLAN) else ["plan"]
        if not changed:
            self.shards = self._finished()
        elif storage.exists(self._note(0)):
            what = "whose source changed since" if changed == ["source"] else "of another set or with other options"
            raise DataError(
                f"{storage.url} holds an unfinished pack {what} (other {', '.join(changed)}). Delete {storage.url} and "
                "run this command again, or run the earlier command again to finish it, or pack to another address."
            )
        else:  # no shard is finished, so nothing is lost
            storage.publish(_PLAN, json.dumps(plan).encode())

    def _changed(self, plan: dict[str, Any]) -> list[str]:
        """What differs from the plan that is there; earlier versions did not note the source."""
        try:
            there = {"source": plan["source"]} | read_document(self._storage, _PLAN, dict[str, Any], DataError)
        except DataError:
            return ["plan"]
        return [name for name in plan if there.get(name) != plan[name]]

    def are_there(self) -> bool:
        """Whether the plan is still that of this pack; False if it is gone.

        Raises:
            DataError: another pack has begun at the address since.
        """
        try:
            changed = self._changed(self._plan)
        except NotFoundError:
            return False
        if changed:
            raise DataError(
                f"Another pack, of another set or with other options, writes to {self._storage.url} too (other "
                f"{', '.join(changed)}). Run this command again with another address."
            )
        return True

    def add(self, shard: IndexedShard) -> None:
        """Write the index of a shard whose file is written, and note it."""
        self._storage.publish(shard.row.index_file, shard.index_data)
        self._storage.publish(self._note(len(self.shards)), json.dumps(asdict(shard.row)).encode())
        self.shards.append(shard.row)

    def finished(self) -> Iterator[IndexedShard]:
        """The shards that were noted before, one in memory at a time."""
        for shard in list(self.shards):
            yield IndexedShard(shard, self._index(shard))

    def _index(self, shard: Shard) -> ShardIndex:
        """The samples of a shard; ValueError where its index is damaged or of another file."""
        index, sha256 = ShardIndex.from_bytes(self._storage.read_bytes(shard.index_file))
        if sha256 != shard.sha256 or index.labels_digest() != shard.labels_sha256:
            raise ValueError("it is of another shard")
        return index

    def remove(self) -> None:
        """Delete all notes; the manifest replaces them."""
        self._storage.delete(FOLDER)

    def _finished(self) -> list[Shard]:
        """The shards noted, up to the first one that is not there in its full size."""
        shards: list[Shard] = []
        while self._storage.exists(note := self._note(len(shards))):
            try:
                shard = read_document(self._storage, note, Shard, DataError)
            except DataError:
                break
            sizes = {shard.file: shard.num_bytes, shard.index_file: shard.index_bytes}
            if not all(self._storage.exists(file) and self._storage.size(file) == sizes[file] for file in sizes):
                break
            try:
                self._index(shard)
            except ValueError:
                break
            shards.append(shard)
        return shards

    def _note(self, number: int) -> str:
        return f"{FOLDER}/{number:06d}.json"
