"""Training from Python."""

import copy
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from ebmscale.config import RunConfig, config_of, load_config
from ebmscale.config.overrides import set_key
from ebmscale.errors import ConfigError

if TYPE_CHECKING:
    from ebmscale.model.latent_model import LatentModel
    from ebmscale.storage import Storage
    from ebmscale.training.callbacks import Callback


class TrainedRun(str):
    """A trained run: a string that holds its address, with methods that open what is stored there.

    Attributes:
        storage: the folder of the run.
        report: the address of its report; empty on ranks other than the first.

    Example:
        >>> run = ebmscale.train("preset:digits")
        >>> images = run.load().sample(64)
    """

    storage: "Storage"
    report: str

    @classmethod
    def of(cls, storage: "Storage", report: str) -> "TrainedRun":
        """The run in a folder."""
        self = cls(storage.url)
        self.storage, self.report = storage, report
        return self

    def load(self, device: str = "cpu") -> "LatentModel":
        """The model in the run's newest valid checkpoint. Arguments and errors are those of `ebmscale.load`."""
        from ebmscale.model.load import open_model  # noqa: PLC0415
        from ebmscale.world import device_of  # noqa: PLC0415

        return open_model(self.storage).to(device_of(device))

    def events(self) -> list[dict[str, Any]]:
        """Every measurement of evidence with its decision: the lines of `events.jsonl`."""
        from ebmscale.training.metrics import EVENTS_FILE, read_lines  # noqa: PLC0415

        return read_lines(self.storage, EVENTS_FILE)

    def __repr__(self) -> str:
        return f"TrainedRun({str(self)!r})"


def train(
    config: RunConfig | Mapping[str, Any] | str | PathLike[str],
    *,
    callbacks: Sequence["Callback"] = (),
    quiet: bool = False,
) -> TrainedRun:
    """Trains a run to its budget, or resumes it, and writes its report. Ctrl-C saves the run first.

    Args:
        config: a mapping of keys (nested as in a file, or with dots), a file, `preset:NAME`, or a `RunConfig`.
        callbacks: functions that take one `Progress` (see `ebmscale.training.callbacks`). They are called on rank 0 at
            the start, at every line of metrics, at every measurement of the evidence and at every skipped update.
        quiet: whether to print nothing.

    Returns:
        The run: a string with its address, which `ebmscale.load` takes, with `report`, `events()` and `load()`.

    Raises:
        EbmscaleError: training is not possible; the message says why and what to do (see `ebmscale.errors`).
        Interrupted: the run was stopped and has saved its state; the same call continues it.

    Example:
        >>> run = ebmscale.train(ebmscale.load_config("preset:digits", ["train.max_samples=20000"]))
        >>> model = run.load()
    """
    from ebmscale.model.run_folder import run_storage  # noqa: PLC0415 (so that importing ebmscale is quick)
    from ebmscale.report.run_report import write_report  # noqa: PLC0415
    from ebmscale.storage import open_storage  # noqa: PLC0415
    from ebmscale.terminal import Terminal  # noqa: PLC0415

    found = _config(config)
    console, is_first = Terminal(quiet=quiet), True
    if found.ray.num_workers:
        from ebmscale.runtime.ray_train import train_on_ray  # noqa: PLC0415

        if callbacks:
            raise ConfigError(
                "callbacks are called where the run trains, and with ray.num_workers above 0 that is in other "
                "processes; use ray.num_workers=0, or read the run's metrics.jsonl and events.jsonl."
            )
        train_on_ray(found, console)
    else:
        from ebmscale.runtime.worker import run_worker  # noqa: PLC0415
        from ebmscale.training.callbacks import CallbackView  # noqa: PLC0415

        is_first = run_worker(found, console, CallbackView(console, callbacks))[1].is_first
    storage = run_storage(found)
    report = write_report(storage, open_storage(found.data), found.checkpoint.retry_s) if is_first else ""
    return TrainedRun.of(storage, report)


def _config(given: RunConfig | Mapping[str, Any] | str | PathLike[str]) -> RunConfig:
    """The configuration that was given in one of the forms that `train` takes."""
    if isinstance(given, RunConfig):
        return given
    if isinstance(given, Mapping):
        tree: dict[str, Any] = {}
        for name in sorted(map(str, given), key=lambda name: name.count(".")):  # blocks before keys inside them
            set_key(tree, name, copy.deepcopy(given[name]))
        return config_of(tree, "the configuration")
    if not isinstance(given, str | PathLike):
        raise ConfigError(f"config must be a configuration, a file of one or its values, not {given!r}.")
    return load_config(fspath(given))
