"""The record of a trial: one small JSON file in the search's storage, from which any process can resume the trial.

URL/NAME/search.yaml              the configuration and the space
URL/NAME/records/0003.json        values, state, reports of trial 3
URL/NAME/trials/0003/             its run, like any run; 0003-1 after it has taken over another trial's checkpoint
"""

from typing import Any, Literal

from pydantic import BaseModel, field_validator

from ebmscale.config import Block, RunConfig, config_of
from ebmscale.config.removed import new_name
from ebmscale.documents import read_yaml, write_yaml
from ebmscale.errors import ConfigError, DamagedError, NotFoundError
from ebmscale.model.run_folder import run_storage
from ebmscale.search.space import Space, parse_space
from ebmscale.storage import Storage
from ebmscale.stored import DOCUMENT_BYTES, Count, FileName, Stored, as_form, read_document, read_file

SEARCH_FILE, RECORDS, TRIALS = "search.yaml", "records", "trials"
SEARCH_PREFIX = "tune-"  # of the folder of a search


class Attempt(Block):
    """A process that worked on a trial: its place, and the samples seen at its start."""

    place: str
    samples_seen: Count


class Origin(Block):
    """The origin of a generation of a trial: another trial's checkpoint at about `samples_seen`."""

    donor: Count
    folder: FileName
    samples_seen: Count


class TrialRecord(BaseModel):
    """The state and the results of a trial.

    Attributes:
        values: by key of the configuration.
        status: `running` until it is `finished`, `stopped` by the scheduler, or `failed`.
        reason: of a stop or a failure, as a sentence.
        origins: of its generations after the first.
        attempts: the processes that worked on it.
        deaths: of its processes, since its last progress.
        reports: numbers by name, with `samples_seen`, oldest first.
        measured: values measured after it had finished.
    """

    number: Count
    values: dict[str, Any]
    status: Literal["running", "finished", "stopped", "failed"] = "running"
    reason: str = ""
    origins: list[Origin] = []
    attempts: list[Attempt] = []
    deaths: Count = 0
    reports: list[dict[str, float]] = []
    measured: dict[str, float] = {}

    @field_validator("values")
    @classmethod
    def _with_present_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {new_name(key): value for key, value in values.items()}

    @field_validator("reports")
    @classmethod
    def _reports_are_placed(cls, reports: list[dict[str, float]]) -> list[dict[str, float]]:
        places = [report.get("samples_seen", -1.0) for report in reports]
        if not all(0 <= place < 2**63 for place in places):
            raise ValueError("a report has no samples_seen")
        return reports

    @property
    def folder(self) -> str:
        """The name of its current run."""
        return folder_of(self.number, len(self.origins))

    def folder_at(self, samples_seen: int) -> str:
        """The name of the run that reported at this place."""
        return folder_of(self.number, sum(origin.samples_seen < samples_seen for origin in self.origins))

    @property
    def samples_seen(self) -> int:
        """The samples seen at the last report."""
        return int(self.reports[-1]["samples_seen"]) if self.reports else 0

    def add(self, report: dict[str, float]) -> bool:
        """Adds a report, unless it is a repetition after a resume; returns whether it was new."""
        if self.reports and report["samples_seen"] < self.samples_seen:
            return False
        if self.reports and report["samples_seen"] == self.samples_seen:
            new = not report.items() <= self.reports[-1].items()
            self.reports[-1] |= report
            return new
        self.reports.append(report)
        return True

    def move(self, origin: Origin, values: dict[str, Any]) -> None:
        """Starts a generation with these values; drops the reports after its place."""
        self.origins.append(origin)
        self.values = values
        self.reports = [report for report in self.reports if report["samples_seen"] <= origin.samples_seen]


def folder_of(number: int, generation: int) -> str:
    """The name of a trial's run."""
    return f"{number:04d}" + (f"-{generation}" if generation else "")


def own_place(config: RunConfig) -> RunConfig:
    """The configuration of a search, whose folder is not that of a run of the same name.

    A search lies at `storage.url`/tune-`run.name`. One of an earlier version stays at `storage.url`/`run.name`.
    """
    if run_storage(config).exists(SEARCH_FILE):
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"name": SEARCH_PREFIX + config.run.name})})


class SearchFile(Stored):
    """`search.yaml`: the configuration and the space."""

    config: dict[str, Any]
    space: dict[str, Any]


class SearchStore:
    """The files of one search.

    Args:
        storage: of the files.
    """

    def __init__(self, storage: Storage):
        self.storage = storage

    def claim(self, config: RunConfig, space: Space) -> None:
        """Writes `search.yaml`.

        Raises:
            ConfigError: the storage holds a search with another configuration or space.
        """
        tree = {"config": config.model_dump(mode="json"), "space": space.dump()}
        if self.storage.exists(SEARCH_FILE):
            old = self._tree()
            old["config"] = config_of(old["config"], str(self.storage.url_of(SEARCH_FILE))).model_dump(mode="json")
            changed = _changed(old, tree)
            if changed:
                raise ConfigError(
                    f"The search {self.storage.url} was made with other values of {', '.join(changed)}; choose another "
                    "run.name, or set them back to resume it."
                )
        self.storage.publish(SEARCH_FILE, write_yaml(tree).encode())

    def load(self) -> tuple[RunConfig, Space]:
        """Reads the configuration and the space.

        Raises:
            ConfigError: the storage holds no search.
        """
        if not self.storage.exists(SEARCH_FILE):
            raise ConfigError(f"There is no search at {self.storage.url}; `ebmscale tune` prints its address.")
        tree, source = self._tree(), self.storage.url_of(SEARCH_FILE)
        return config_of(tree["config"], source), parse_space(tree["space"], source)

    def records(self) -> dict[int, TrialRecord]:
        """All records by number; a record that the storage does not list yet is found by its name."""
        names = {name for name in self.storage.list(RECORDS) if name.endswith(".json")}
        number = 0
        while (name := f"{number:04d}.json") in names or self.storage.exists(f"{RECORDS}/{name}"):
            names.add(name)
            number += 1
        return {record.number: record for record in (self._read(name) for name in sorted(names))}

    def read(self, number: int) -> TrialRecord:
        """A trial's record."""
        return self._read(f"{number:04d}.json")

    def write(self, record: TrialRecord) -> None:
        """Writes a record in one atomic operation."""
        self.storage.publish(f"{RECORDS}/{record.number:04d}.json", record.model_dump_json(indent=1).encode())

    def run(self, folder: str) -> Storage:
        """The storage of a trial's run."""
        return self.storage.child(f"{TRIALS}/{folder}")

    def _tree(self) -> dict[str, Any]:
        """Reads `search.yaml` as plain values."""
        where = self.storage.url_of(SEARCH_FILE)
        tree = read_yaml(read_file(self.storage, SEARCH_FILE, DOCUMENT_BYTES), where, DamagedError)
        return as_form(tree, SearchFile, where).model_dump()

    def _read(self, name: str) -> TrialRecord:
        path = f"{RECORDS}/{name}"
        try:
            record = read_document(self.storage, path, TrialRecord, non_finite=True)
            if f"{record.number:04d}.json" != name:
                raise DamagedError(f"it is of trial {record.number}")
        except NotFoundError:
            raise
        except DamagedError as error:
            raise DamagedError(
                f"{self.storage.url_of(path)} is damaged: it is not a record of a trial ({str(error).rstrip('.')}); "
                "delete it, and the search will run the trial again."
            ) from None
        return record


_MAY_CHANGE = ("num_trials", "resources", "max_failures")
_MAY_MOVE = (
    *("storage", "ray", "checkpoint", "data.url", "data.source", "data.cache", "data.accept_changed"),
    *("device", "num_threads"),
)


def _changed(old: Any, new: dict[str, Any]) -> list[str]:
    """Changed keys that make another search; the number of trials and the place where they run may change."""
    before, after = _leaves(old), _leaves(new)
    allowed = [f"space.{key}" for key in _MAY_CHANGE] + [f"config.{key}" for key in _MAY_MOVE]
    return sorted(
        key.partition(".")[2]
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key) and not any(key == a or key.startswith(a + ".") for a in allowed)
    )


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, value in tree.items() for k, v in _leaves(value, f"{prefix}.{name}".strip(".")).items()}
