"""left_out.json beside the manifest: the samples of a source that are not in the set, and why."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ebmscale.data.formats import Record, Source
from ebmscale.data.names import printable
from ebmscale.errors import DataError
from ebmscale.storage import Storage
from ebmscale.stored import as_form, read_document

FILE = "left_out.json"
MOST_DAMAGED = 0.01  # of all samples, by default
_KIND = {"kind": "ebmscale-left-out", "version": 1}


@dataclass(frozen=True)
class LeftOut:
    """A sample that cannot be used.

    Attributes:
        key: of the sample.
        part: of the set.
        file: its path; empty if it has no file of its own.
        reason: why it cannot be used, a sentence.
    """

    key: str
    part: str
    file: str
    reason: str

    @classmethod
    def of(cls, record: Record, reason: str) -> "LeftOut":
        """The entry of a record."""
        return cls(record.key, record.part, printable(str(getattr(record.image, "path", ""))), reason)


@dataclass
class LeftOutList:
    """All samples that were left out.

    Attributes:
        samples: so far, in the order of the source.
    """

    samples: list[LeftOut] = field(default_factory=list)

    @classmethod
    def load(cls, storage: Storage) -> "LeftOutList":
        """The list of a packed set; empty if the set has none that this version reads."""
        if not storage.exists(FILE):
            return cls()
        try:
            fields = read_document(storage, FILE, dict[str, Any], DataError)
            if {name: fields.pop(name, None) for name in _KIND} != _KIND:
                return cls()
            return as_form(fields, cls, storage.url_of(FILE), DataError)
        except DataError:
            return cls()

    def save(self, storage: Storage) -> None:
        """Write the list beside the set, or delete an earlier list if nothing was left out."""
        if self.samples:
            text = json.dumps(_KIND | dataclasses.asdict(self), indent=1)
            storage.publish(FILE, text.encode())
        elif storage.exists(FILE):
            storage.delete(FILE)

    def split(self, source: Source) -> tuple[Source, list[Record]]:
        """The source without these samples, and the records of those that are still in the source."""
        keys = {one.key for one in self.samples}
        if not keys:
            return source, []
        absent = [record for record in source.records() if record.key in keys]
        counts = dict(source.counts)
        for record in absent:
            counts[record.part] -= 1

        def records() -> Iterator[Record]:
            return (record for record in source.records() if record.key not in keys)

        counts = {part: count for part, count in counts.items() if count}
        return dataclasses.replace(source, records=records, counts=counts), absent


@dataclass
class Tolerance:
    """How many samples may be left out of a set.

    Attributes:
        source: the samples come from it.
        storage: of the set.
        share: the largest share of all samples that may be left out.
        found: the samples left out so far.
    """

    source: Source
    storage: Storage
    share: float
    found: LeftOutList = field(default_factory=LeftOutList)

    def add(self, one: LeftOut) -> None:
        """Leave a sample out.

        Raises:
            DataError: more samples than the share are left out. The list of those so far is written before.
        """
        self.found.samples.append(one)
        total, num = sum(self.source.counts.values()), len(self.found.samples)
        if num <= self.share * total:
            return
        self.found.save(self.storage)
        raise DataError(
            f"{num:,} of the {total:,} samples of {self.source.name} cannot be used, more than the share of "
            f"{self.share:g} that --max-damaged allows, so the pack stopped. The first one: "
            f"{self.found.samples[0].reason} All that were found so far are listed in {self.storage.url_of(FILE)}. "
            "Repair them or take them out of the source, or give a larger --max-damaged."
        )
