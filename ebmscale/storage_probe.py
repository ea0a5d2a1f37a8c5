"""Whether a storage can be written to: asked before work begins whose results it will take."""

import os
import uuid
from contextlib import suppress

from ebmscale.errors import StorageError
from ebmscale.faults import describe, space_advice
from ebmscale.storage import Storage


def probe(storage: Storage, key: str = "storage.url", tidy: bool = False) -> None:
    """Writes, reads back and deletes a small object.

    Args:
        storage: the storage that is asked.
        key: the key or option that names it.
        tidy: whether local folders that this makes are deleted again. No other process may be writing then.

    Raises:
        StorageError: it cannot be written to; the message says what to do.
    """
    name, local = f".ebmscale-probe-{uuid.uuid4().hex}", storage.local_path()
    made = [one for one in (local, *local.parents) if not os.path.exists(one)] if tidy and local is not None else []
    try:
        storage.publish(name, name.encode())
        same = storage.read_bytes(name) == name.encode()
        storage.delete(name)
    except StorageError as error:
        remedy = space_advice(error) or "grant this account read, write and delete there"
        why = storage.url.hidden_in(describe(error.__cause__ or error))
        message = f"{storage.url} cannot be written to ({why}); choose another {key} or {remedy}."
        raise StorageError(message) from error
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
    if not same:
        raise StorageError(f"{storage.url} returned other bytes than were written; choose another {key}.")
