"""The ledger of a search: the one writer of its records. It says which trial comes next, and what becomes of one."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from ebmscale.config import RunConfig
from ebmscale.search.objectives import score
from ebmscale.search.population import exploit
from ebmscale.search.propose import num_trials, propose
from ebmscale.search.space import Space
from ebmscale.search.trial import Attempt, Record, SearchStore

Judge = Callable[[int, int, float], bool]
"""Whether a trial is to be stopped: its number, its samples_seen, its score (smaller is better)."""


class Order(NamedTuple):
    """What a trial is asked to do: `stop` for good, `move` to another's checkpoint, or `leave` to be resumed."""

    kind: Literal["stop", "move", "leave"]
    reason: str


class Ledger:
    """See the module. Every change is in the storage before it has an effect.

    Args:
        store: the search's files.
        config: of the search, with the overrides.
        space: what is tried.
        tell: takes what happens, as lines for a person.
        check: called before a record is written; raises where the search is not this process's to write.
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
        self._tell, self._check = tell, check
        self._judge: Judge = lambda number, samples_seen, value: False
        self._handed_out: set[int] = set()

    @property
    def wanted(self) -> int:
        """Trials in the end."""
        return num_trials(self.space)

    @property
    def left(self) -> int:
        """Trials that are not done, begun or not."""
        return self.wanted - sum(r.status != "running" for r in self.records.values() if r.number < self.wanted)

    def consult(self, judge: Judge) -> None:
        """Lets a judge stop trials from now on (scheduler asha); it is told of what was reported so far."""
        self._judge = judge
        for record in sorted(self.records.values(), key=lambda one: one.number):
            for report in record.reports:
                self._verdict(record, report)

    def progress(self) -> tuple[int, int]:
        """Trials done and samples seen: a search that stands still has the same ones again."""
        return self.wanted - self.left, sum(record.samples_seen for record in self.records.values())

    def hand_out_again(self) -> None:
        """Trials that are not done may be handed out once more, since no process works on them."""
        self._handed_out.clear()

    def next_trial(self) -> Record | None:
        """A trial to work on: one that was broken off, else a new one; None where all have been handed out."""
        for number in range(self.wanted):
            record = self.records.get(number)
            if number in self._handed_out or (record is not None and record.status != "running"):
                continue
            if record is None:
                record = Record(number=number, values=propose(self.space, self.config, number, self.records))
                self._write(record)
                self.records[number] = record
            self._handed_out.add(number)
            return record
        return None

    def begun(self, number: int, place: str, samples_seen: int) -> None:
        """A process works on a trial, from this sample on."""
        record = self.records[number]
        record.attempts.append(Attempt(place=place, samples_seen=samples_seen))
        self._write(record)
        again = f" again, from {samples_seen:,} samples" if len(record.attempts) > 1 else ""
        self._tell(f"trial {number} runs on {place}{again}: {describe(record.values)}")

    def reported(self, number: int, report: dict[str, float]) -> Order | None:
        """Takes a report; what the trial is asked to do about it."""
        record = self.records[number]
        if record.status != "running":
            return Order("leave", "it is done")
        if not record.add(report):
            return None
        record.deaths = 0
        if self._verdict(record, report):
            return self._stop(record)
        move = exploit(self.space, self.config, number, self.records) if self.space.scheduler == "pbt" else None
        if move is None:
            self._write(record)
            return None
        record.move(move.origin, move.values)
        self._write(record)
        reason = f"takes over trial {move.origin.donor} at {move.origin.samples_seen:,} samples"
        self._tell(f"trial {number} {reason}: {describe(move.values)}")
        return Order("move", reason)

    def ended(self, number: int, error: str | None, measured: dict[str, float]) -> None:
        """A trial trained to its end, or ended with an error."""
        record = self.records[number]
        if record.status != "running":
            return
        record.status, record.reason, record.measured = ("failed" if error else "finished"), error or "", measured
        self._write(record)
        found = ", ".join(f"{o.name} {short(score(o, record))}" for o in self.space.objectives)
        self._tell(f"trial {number} {f'failed: {error}' if error else f'finished: {found}'}")

    def died(self, number: int, how: str) -> None:
        """The process of a trial is gone; after too many such ends without progress the trial has failed."""
        record = self.records[number]
        if record.status != "running":
            return
        record.deaths += 1
        if record.deaths > self.space.max_failures:
            self.ended(number, f"Its process died {record.deaths} times with no progress between ({how}).", {})
            return
        self._write(record)
        self._tell(f"trial {number} lost its process at {record.samples_seen:,} samples ({how}); it is started again")

    def _write(self, record: Record) -> None:
        self._check()
        self.store.write(record)

    def _verdict(self, record: Record, report: dict[str, float]) -> bool:
        first = self.space.objectives[0]
        if self.space.scheduler != "asha" or first.metric not in report:
            return False
        value = score(first, record, until=report["samples_seen"])
        if value is None:
            return False
        stops = self._judge(record.number, int(report["samples_seen"]), first.sign * value)
        return stops and not (record.number == 0 and self.space.has_default)

    def _stop(self, record: Record) -> Order | None:
        first, budget = self.space.objectives[0], self.config.train.max_samples
        if record.samples_seen >= budget:
            self._write(record)
            return None
        value = short(score(first, record))
        record.reason = f"at {record.samples_seen:,} samples {first.name} {value} was not among the best"
        record.status = "stopped"
        self._write(record)
        self._tell(f"trial {record.number} is stopped: {record.reason}")
        return Order("stop", record.reason)


def describe(values: dict[str, Any]) -> str:
    """Values in a few words."""
    return ", ".join(f"{key} {short(value)}" for key, value in values.items())


def short(value: Any) -> str:
    """A value in a few characters."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
