"""The finished shards of an interrupted pack: one note for each below .partial/, deleted when the set is complete.

.partial/plan.json says what is being packed and how; .partial/000000.json and so on are the finished shards' entries
of the manifest, each written after its shard. So a shard with a note is complete.
"""

import json
from typing import Any

from ebmscale.data.manifest import Shard
from ebmscale.errors import DataError
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
        plan = json.loads(json.dumps(plan))
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

    def add(self, shard: Shard) -> None:
        """Note a shard whose file is written."""
        self._storage.publish(self._note(len(self.shards)), json.dumps(vars(shard)).encode())
        self.shards.append(shard)

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
            if not self._storage.exists(shard.file) or self._storage.size(shard.file) != shard.num_bytes:
                break
            shards.append(shard)
        return shards

    def _note(self, number: int) -> str:
        return f"{FOLDER}/{number:06d}.json"
