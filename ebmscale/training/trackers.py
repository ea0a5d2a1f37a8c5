"""Weights & Biases and MLflow: the numbers and pictures of a run, if they are installed and `metrics.trackers` asks.

A tracker never ends a run: after its first error it is switched off with a warning. Everything that it gets is in the
run's own files too.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError

log = logging.getLogger(__name__)

PROJECT = "ebmscale"
AXIS = "samples_seen"


class Tracker(Protocol):
    """A destination of numbers and pictures."""

    def numbers(self, samples_seen: int, values: Mapping[str, float]) -> None:
        """Adds a point at `samples_seen` to the curve of every name."""

    def picture(self, samples_seen: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture (H, W, 3) of uint8."""

    def close(self) -> None:
        """Sends what is left."""


class WandbTracker:
    """A run of Weights & Biases. A resumed run continues it."""

    def __init__(self, config: RunConfig, url: str):
        import wandb  # noqa: PLC0415 (optional)

        self._wandb = wandb
        self._run = wandb.init(
            project=PROJECT,
            name=config.run.name,
            id=_digest(url),
            resume="allow",
            config=config.model_dump(mode="json"),
        )
        self._run.define_metric("*", step_metric=AXIS)

    def numbers(self, samples_seen: int, values: Mapping[str, float]) -> None:
        """Adds a point to every curve."""
        self._run.log({AXIS: samples_seen, **values})

    def picture(self, samples_seen: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture."""
        self._run.log({AXIS: samples_seen, name: self._wandb.Image(picture)})

    def close(self) -> None:
        """Ends the run of this process."""
        self._run.finish()


class MlflowTracker:
    """A run of MLflow, in its experiment `ebmscale`. A resumed run continues it."""

    def __init__(self, config: RunConfig, url: str):
        import mlflow  # noqa: PLC0415 (optional)

        self._mlflow = mlflow
        tag = _digest(url)
        experiment = mlflow.set_experiment(PROJECT)
        earlier = mlflow.search_runs(
            experiment_ids=[experiment.experiment_id],
            filter_string=f"tags.ebmscale_run = '{tag}'",
            output_format="list",
        )
        self._run = mlflow.start_run(
            run_id=earlier[0].info.run_id if earlier else None, run_name=config.run.name, nested=True
        )
        mlflow.set_tags({"ebmscale_run": tag, "address": url})
        mlflow.log_text(config.dump(), "config.yaml")

    def numbers(self, samples_seen: int, values: Mapping[str, float]) -> None:
        """Adds a point to every curve."""
        self._mlflow.log_metrics(dict(values), step=samples_seen, run_id=self._run.info.run_id)

    def picture(self, samples_seen: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture."""
        self._mlflow.log_image(picture, f"{name}/{samples_seen:012d}.png")

    def close(self) -> None:
        """Ends the run of this process."""
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[RunConfig, str], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
"""The trackers by their names in `metrics.trackers`, which are the names of the packages."""


class Guarded:
    """A tracker whose first error switches it off."""

    def __init__(self, name: str, config: RunConfig, url: str):
        self._name = name
        self._tracker: Tracker | None = None
        self._tracker = self._try(lambda: TRACKERS[name](config, url))

    def numbers(self, samples_seen: int, values: Mapping[str, float]) -> None:
        """Adds a point at `samples_seen` to every curve whose value is finite."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._call(lambda tracker: tracker.numbers(samples_seen, finite))

    def picture(self, samples_seen: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture (H, W, 3) of uint8."""
        self._call(lambda tracker: tracker.picture(samples_seen, name, picture))

    def close(self) -> None:
        """Sends what is left."""
        self._call(lambda tracker: tracker.close())

    def _call(self, action: Callable[[Tracker], None]) -> None:
        tracker = self._tracker
        if tracker is not None:
            self._try(lambda: action(tracker))

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # code of another project may raise anything
            self._tracker = None
            log.warning("%s is switched off for this run: %s", self._name, " ".join(str(error).split())[:300])
            return None


def check_trackers(config: RunConfig) -> None:
    """Refuses trackers that are not installed.

    Raises:
        ConfigError: one is not.
    """
    for name in config.metrics.trackers:
        if find_spec(name) is None:
            raise ConfigError(f"metrics.trackers has {name}, which is not installed; install it: pip install {name}.")


def open_trackers(config: RunConfig, url: str) -> list[Tracker]:
    """The trackers of a run, by its configuration; `url` is its address. Only rank 0 opens them."""
    return [Guarded(name, config, url) for name in config.metrics.trackers]


def _digest(url: str) -> str:
    """The name of a run for a tracker. It is the same at every resume."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]
