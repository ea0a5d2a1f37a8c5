"""The ledger of a search: it alone writes the records, chooses the next trial, and decides which trials continue."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from ebmscale.config import RunConfig
from ebmscale.documents import excerpt
from ebmscale.errors import DamagedError
from ebmscale.search.objectives import objective_value
from ebmscale.search.population import exploit
from ebmscale.search.propose import num_trials, propose_values
from ebmscale.search.space import Space
from ebmscale.search.trial import RECORDS, Attempt, SearchStore, TrialRecord

StopRule = Callable[[int, int, float], bool]
"""Whether to stop a trial: a function of its number, its samples_seen and its score (smaller is better)."""


class TrialOrder(NamedTuple):
    """What a trial has to do: `stop` for good, `move` to another trial's checkpoint, or `leave` and resume later."""

    kind: Literal["stop", "move", "leave"]
    reason: str


class Ledger:
    """See the module. Every change is written to the storage before it has an effect.

    Args:
        store: the search's files.
        config: of the search, with the overrides.
        space: of the values.
        tell: receives lines on what happens, for a person.
        check: called before a record is written; raises if another process owns the search.
    """

    def __init__(
        self,
        store: SearchStore,
        config: RunConfig,
        space: Space,
        tell: Callable[[str], None] = lambda line: None,
        check: Callable[[], None] = lambda: None,
    ):
        self.store, self.config, self.space = store, config, space
        self.records = store.records()
        for record in self.records.values():
            _check_values(record, store, space)
        self._tell, self._check = tell, check
        self._stop_rule: StopRule = lambda number, samples_seen, value: False
        self._issued: set[int] = set()

    @property
    def wanted(self) -> int:
        """The number of trials of the complete search."""
        return num_trials(self.space)

    @property
    def left(self) -> int:
        """The number of trials that are not done, whether they have started or not."""
        return self.wanted - sum(r.status != "running" for r in self.records.values() if r.number < self.wanted)

    def use_stop_rule(self, rule: StopRule) -> None:
        """Uses this rule to stop trials from now on (scheduler asha); passes it all reports so far."""
        self._stop_rule = rule
        for record in sorted(self.records.values(), key=lambda one: one.number):
            for report in record.reports:
                self._should_stop(record, report)

    def progress(self) -> tuple[int, int]:
        """The number of trials done and of samples seen; both stay the same while the search makes no progress."""
        return self.wanted - self.left, sum(record.samples_seen for record in self.records.values())

    def reissue_unfinished(self) -> None:
        """Lets `next_trial` return the unfinished trials once more, because no process works on them now."""
        self._issued.clear()

    def next_trial(self) -> TrialRecord | None:
        """The next trial to work on: an interrupted one, else a new one; None if all have been issued."""
        for number in range(self.wanted):
            record = self.records.get(number)
            if number in self._issued or (record is not None and record.status != "running"):
                continue
            if record is None:
                record = TrialRecord(
                    number=number, values=propose_values(self.space, self.config, number, self.records)
                )
                self._write(record)
                self.records[number] = record
            self._issued.add(number)
            return record
        return None

    def begun(self, number: int, place: str, samples_seen: int) -> None:
        """Records that a process works on a trial from this sample on."""
        record = self.records[number]
        record.attempts.append(Attempt(place=place, samples_seen=samples_seen))
        self._write(record)
        again = f" again, from {samples_seen:,} samples" if len(record.attempts) > 1 else ""
        self._tell(f"trial {number} runs on {place}{again}: {describe_values(record.values)}")

    def reported(self, number: int, report: dict[str, float]) -> TrialOrder | None:
        """Records a report; returns the trial's order, or None to continue."""
        record = self.records[number]
        if record.status != "running":
            return TrialOrder("leave", "it is done")
        if not record.add(report):
            return None
        record.deaths = 0
        if self._should_stop(record, report):
            return self._stop(record)
        move = exploit(self.space, self.config, number, self.records) if self.space.scheduler == "pbt" else None
        if move is None:
            self._write(record)
            return None
        record.move(move.origin, move.values)
        self._write(record)
        reason = f"takes over trial {move.origin.donor} at {move.origin.samples_seen:,} samples"
        self._tell(f"trial {number} {reason}: {describe_values(move.values)}")
        return TrialOrder("move", reason)

    def ended(self, number: int, error: str | None, measured: dict[str, float]) -> None:
        """Records that a trial has finished, or has failed with an error."""
        record = self.records[number]
        if record.status != "running":
            return
        record.status, record.reason, record.measured = ("failed" if error else "finished"), error or "", measured
        self._write(record)
        found = ", ".join(f"{o.name} {short(objective_value(o, record))}" for o in self.space.objectives)
        self._tell(f"trial {number} {f'failed: {error}' if error else f'finished: {found}'}")

    def died(self, number: int, how: str) -> None:
        """Records that the process of a trial is gone; after too many deaths without progress the trial has failed."""
        record = self.records[number]
        if record.status != "running":
            return
        record.deaths += 1
        if record.deaths > self.space.max_failures:
            self.ended(number, f"Its process died {record.deaths} times with no progress between ({how}).", {})
            return
        self._write(record)
        self._tell(
            f"trial {number} lost its process at {record.samples_seen:,} samples ({how}); it will be started again"
        )

    def _write(self, record: TrialRecord) -> None:
        self._check()
        self.store.write(record)

    def _should_stop(self, record: TrialRecord, report: dict[str, float]) -> bool:
        first = self.space.objectives[0]
        if self.space.scheduler != "asha" or first.metric not in report:
            return False
        value = objective_value(first, record, until=report["samples_seen"])
        if value is None:
            return False
        stops = self._stop_rule(record.number, int(report["samples_seen"]), first.sign * value)
        return stops and not (record.number == 0 and self.space.has_default)

    def _stop(self, record: TrialRecord) -> TrialOrder | None:
        first, budget = self.space.objectives[0], self.config.train.max_samples
        if record.samples_seen >= budget:
            self._write(record)
            return None
        value = short(objective_value(first, record))
        record.reason = f"at {record.samples_seen:,} samples {first.name} {value} was not among the best"
        record.status = "stopped"
        self._write(record)
        self._tell(f"trial {record.number} is stopped: {record.reason}")
        return TrialOrder("stop", record.reason)


def _check_values(record: TrialRecord, store: SearchStore, space: Space) -> None:
    """Refuses a record whose values are not of the space, since they can be neither shown nor learned from.

    Raises:
        DamagedError: a value is of a key that the space does not have, or outside its range or choice.
    """
    for key, value in record.values.items():
        if key not in space.space or not space.space[key].holds(value):
            raise DamagedError(
                f"The record of trial {record.number} in {store.storage.url_of(RECORDS)} is damaged: the space has no "
                f"{excerpt(key)} of {excerpt(repr(value))}; delete the record, and the search will run the trial again."
            )


def describe_values(values: dict[str, Any]) -> str:
    """Values as short text."""
    return ", ".join(f"{key} {short(value)}" for key, value in values.items())


def short(value: Any) -> str:
    """A value as short text."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
