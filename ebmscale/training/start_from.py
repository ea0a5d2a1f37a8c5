"""A run that begins with another one, as that was before its ratios began: `run.start_from`.

URL/NAME/start.json     the checkpoint of the other run, which is copied beside the run's own
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ebmscale.config import RESUMABLE, RunConfig, StagesBlock, changed_keys
from ebmscale.data.manifest import Manifest
from ebmscale.errors import ConfigError, DamagedError, NotFoundError
from ebmscale.model.checkpoint import SavedCheckpoint
from ebmscale.model.checkpoint_reader import CheckpointReader
from ebmscale.model.run_folder import saved_config
from ebmscale.storage import Storage, open_storage
from ebmscale.stored import Stored, read_document
from ebmscale.training.checkpoint import copy_checkpoint
from ebmscale.training.line_files import LineFile
from ebmscale.training.metrics import EVENTS_FILE, GUARD_FILE, METRICS_FILE
from ebmscale.training.run_data import check_run_data

MAY_DIFFER = (
    "run.name",
    "method",
    "prior",
    "model.ratio",
    "train.ratio",
    *(f"stages.{name}" for name in StagesBlock.model_fields if name != "buffer_samples"),
)
"""Keys that change nothing before `stages.start_samples`. The buffer of posteriors fills before."""

START_FILE = "start.json"


class Start(Stored):
    """What a run notes of the other run.

    Attributes:
        checkpoint: the name of the other run's checkpoint, and of its copy.
        url: of the other run.
    """

    checkpoint: str
    url: str


def borrowed_checkpoint(storage: Storage) -> str | None:
    """The name of the checkpoint of another run with which a run started; None if it started alone."""
    try:
        return read_document(storage, START_FILE, Start).checkpoint
    except NotFoundError:
        return None


@dataclass(frozen=True)
class Beginning:
    """The run that `run.start_from` names.

    Attributes:
        storage: its own.
        config: its own.
    """

    storage: Storage
    config: RunConfig

    @classmethod
    def of(cls, config: RunConfig, storage: Storage) -> "Beginning | None":
        """The run with which a run begins; None if it names none, or has a checkpoint of its own.

        Args:
            config: of the run that begins.
            storage: its own.

        Raises:
            ConfigError: the other run is not there, or the run names itself.
        """
        url = config.run.start_from
        if url is None or CheckpointReader(storage).finished():
            return None
        other = replace(open_storage(config.storage.model_copy(update={"url": url})), stop=storage.stop)
        if other.url == storage.url:
            raise ConfigError("run.start_from is the run itself; give another run, or leave it out.")
        found = saved_config(other)
        if found is None:
            raise ConfigError(f"run.start_from: there is no run at {other.url}; check the address.")
        return cls(other, found)

    def copy_to(
        self, storage: Storage, config: RunConfig, manifest: Manifest, check: Callable[[], None] = lambda: None
    ) -> None:
        """Copies the newest valid checkpoint from before the ratios, and the logs until there.

        Args:
            storage: of the run that begins.
            config: its own.
            manifest: of its data set.
            check: called before every file; an exception that it raises ends the copying.

        Raises:
            ConfigError: the runs differ in what the generator learns from, or there is no such checkpoint.
            DataError: the other run was trained on another data set.
        """
        changed = changed_keys(self.config, config, (*RESUMABLE, *MAY_DIFFER))
        if changed:
            raise ConfigError(
                f"run.start_from: {self.storage.url} has other values of {', '.join(changed)}, so its generator is not "
                "the one that this run would train; set them as there, or leave out run.start_from."
            )
        check_run_data(self.storage, manifest, config)
        saved = self._checkpoint(min(config.prior_begins, self.config.prior_begins))
        for log in (METRICS_FILE, EVENTS_FILE, GUARD_FILE):
            check()
            own = LineFile(storage, log)
            own.cut(-1)
            for text in LineFile(self.storage, log).texts():
                own.append(text)
            own.cut(saved.samples_seen)
        start = Start(checkpoint=saved.name, url=str(self.storage.url))
        storage.publish(START_FILE, start.model_dump_json(indent=1).encode())
        copy_checkpoint(saved, self.storage, storage, check)

    def _checkpoint(self, latest: float) -> SavedCheckpoint:
        """The newest valid checkpoint at `latest` samples or before."""
        reader, oldest = CheckpointReader(self.storage), math.inf
        for name in reader.candidates():
            try:
                saved = reader.open(name)
                if saved.samples_seen <= latest:
                    saved.verify()
                    return saved
                oldest = saved.samples_seen
            except DamagedError as error:
                reader.mark_damaged(name, str(error))
        if math.isinf(oldest):
            raise ConfigError(f"run.start_from: {self.storage.url} has no valid checkpoint; train it first.")
        raise ConfigError(
            f"run.start_from: {self.storage.url} needs a checkpoint at {latest:,} samples or before, where the ratios "
            f"begin, and has none before {oldest:,}; train it to there, or set its checkpoint.keep_every."
        )
