"""Shows a running search: a live table on a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ebmscale.search.ledger import Ledger, describe_values, short
from ebmscale.search.objectives import pareto, scores
from ebmscale.search.trial import TrialRecord
from ebmscale.terminal import Terminal, shown

LINES_SHOWN = 4
COLOURS = {"waiting": "white", "running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}
HEAD_AND_FOOT = 6  # lines around the rows


class SearchView:
    """Shows a search from `start` to `close`.

    Args:
        console: where it is shown.
    """

    def __init__(self, console: Terminal):
        self._console = console
        self._live: Live | None = None
        self._ledger: Ledger | None = None
        self._lines: list[str] = []

    def start(self, ledger: Ledger) -> None:
        """Prints the search's address and size, and starts the display."""
        self._ledger = ledger
        done = ledger.wanted - ledger.left
        begun = sum(record.status == "running" and bool(record.attempts) for record in ledger.records.values())
        state = f", {done} done, {begun} to resume" if ledger.records else ""
        space = ledger.space
        text = f"search {ledger.store.storage.url}: {ledger.wanted} trials{state}; {space.searcher}, {space.scheduler}"
        self._console.print(text)
        if self._console.is_terminal and self._console.is_interactive:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=2, transient=True)
            self._live.start()

    def line(self, text: str) -> None:
        """Shows a line on an event."""
        self._lines = [*self._lines, f"{time.strftime('%H:%M:%S')} {text}"][-LINES_SHOWN:]
        if self._live is None:
            self._console.print(text)

    def close(self) -> None:
        """Ends the display and removes its table, which may show only some of the trials."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Any:
        assert self._ledger is not None
        room = max(self._console.height - LINES_SHOWN - HEAD_AND_FOOT, 3)
        lines = (Text(shown(line), overflow="ellipsis", no_wrap=True) for line in self._lines)
        return Group(trials_table(self._ledger, room), *lines)


def trials_table(ledger: Ledger, most: int | None = None) -> Table:
    """A table of the trials; of more than `most`, it shows the running and the newest ones."""
    space, budget = ledger.space, ledger.config.train.max_samples
    done = ledger.wanted - ledger.left
    table = Table(title=f"{done} of {ledger.wanted} trials done", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("state")
    for key in space.space:
        table.add_column(_heading(key, list(space.space)), justify="right")
    table.add_column("samples", justify="right")
    for objective in space.objectives:
        table.add_column(f"{objective.name} ({objective.direction})", justify="right")
    records = sorted(ledger.records.values(), key=lambda record: record.number)
    if most is not None and len(records) > most:
        chosen = sorted(records, key=lambda r: (r.status != "running", -r.number))[:most]
        records = sorted(chosen, key=lambda record: record.number)
    for record in records:
        table.add_row(*_row(ledger, record, budget))
    return table


def front_table(ledger: Ledger) -> Table:
    """A table of the Pareto front."""
    space = ledger.space
    table = Table(title="Pareto front", title_justify="left")
    table.add_column("trial", justify="right")
    for objective in space.objectives:
        table.add_column(f"{objective.name} ({objective.direction})", justify="right")
    table.add_column("values")
    for record in pareto(space, ledger.records.values()):
        table.add_row(str(record.number), *(short(v) for v in scores(space, record)), describe_values(record.values))
    return table


def _row(ledger: Ledger, record: TrialRecord, budget: int) -> list[Any]:
    values = [short(record.values.get(key)) for key in ledger.space.space]
    seen = f"{record.samples_seen:,} {record.samples_seen / budget:.0%}"
    status = record.status if record.attempts or record.status != "running" else "waiting"
    state = Text(status, COLOURS[status])
    found = [short(value) for value in scores(ledger.space, record)]
    return [str(record.number), state, *values, seen, *found]


def _heading(key: str, keys: list[str]) -> str:
    """The last part of a key if that is unique, else the last two parts."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(other.rsplit(".", 1)[-1] == last for other in keys) == 1 else ".".join(key.split(".")[-2:])
