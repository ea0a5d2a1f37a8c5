"""source.json beside the manifest: a record of the files that a set was packed from, so that a change is noticed.

It is a file of its own because the manifest says what the set is, which does not depend on where and when it was
packed.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from ebmscale.data.formats import Source
from ebmscale.data.names import printable
from ebmscale.errors import DataError
from ebmscale.storage import Storage
from ebmscale.stored import as_form, read_document

FILE = "source.json"
_KIND = {"kind": "ebmscale-source", "version": 1}


@dataclass(frozen=True)
class SourceRecord:
    """The files of a source.

    Attributes:
        num_files: how many.
        num_bytes: in all.
        sha256: of every file's path below the folder they share, size and time of its last change.
    """

    num_files: int
    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, source: Source) -> "SourceRecord | None":
        """The record of a source as it is now; None if its files are not known."""
        if not source.files:
            return None
        digest, total = hashlib.sha256(), 0
        common = os.path.commonpath(source.files)
        for file in sorted(source.files):
            try:
                found = file.stat()
            except OSError as error:
                raise DataError(
                    f"A file of {source.name} cannot be read ({printable(str(error))}); check whether it was moved."
                ) from error
            total += found.st_size
            name = os.fsencode(os.path.relpath(file, common))
            digest.update(b"%s\0%d\0%d\0" % (name, found.st_size, found.st_mtime_ns))
        return cls(len(source.files), total, digest.hexdigest())

    @classmethod
    def load(cls, storage: Storage) -> "SourceRecord | None":
        """The record beside a packed set; None if there is none that this version reads, as for older sets."""
        if not storage.exists(FILE):
            return None
        try:
            fields = read_document(storage, FILE, dict[str, Any], DataError)
            if {name: fields.pop(name, None) for name in _KIND} != _KIND:
                return None
            return as_form(fields, cls, storage.url_of(FILE), DataError)
        except DataError:
            return None

    def save(self, storage: Storage) -> None:
        """Write it beside the set."""
        storage.publish(FILE, json.dumps(_KIND | asdict(self)).encode())
