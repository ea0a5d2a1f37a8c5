"""Training on Ray: Ray Train places the workers; this module follows them and returns results or raises errors."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError, EbmscaleError, Interrupted, WorkersLostError
from ebmscale.runtime.board import Board
from ebmscale.runtime.preflight import preflight, storage_of_run
from ebmscale.runtime.ray_backend import torch_config
from ebmscale.runtime.ray_controller import callbacks
from ebmscale.runtime.ray_driver import here, note_for_jobs, with_devices
from ebmscale.runtime.ray_entry import enter
from ebmscale.runtime.ray_session import INSTALL, given_address, ray_session
from ebmscale.runtime.worker_settings import FINISHED, Body, Report, WorkerSettings
from ebmscale.stop import StopSignal
from ebmscale.terminal import Terminal

READ_S = 0.5


def train_on_ray(
    config: RunConfig,
    console: Terminal,
    all_ranks: bool = False,
    body: Body | None = None,
) -> str:
    """Trains or resumes a run on Ray; continues by itself when workers are lost or return.

    Args:
        config: of the run, with `ray.num_workers` above 0.
        console: shows the run's progress.
        all_ranks: whether to show ranks other than the first as well.
        body: what a worker does instead of training.

    Returns:
        The run's address.

    Raises:
        EbmscaleError: an error of the workers; `WorkersLostError` if they could not be kept alive.
    """
    note_for_jobs(config, console)
    config = config.with_absolute_addresses()
    joined = given_address(config.ray) is not None
    with ray_session(config.ray) as ray:
        config = with_devices(config, ray)
        check = (lambda: preflight(ray, config, console)) if joined else (lambda: None)
        return train_in_session(ray, config, console, all_ranks, body, check=check)


def train_in_session(
    ray: Any,
    config: RunConfig,
    console: Terminal,
    all_ranks: bool = False,
    body: Body | None = None,
    report: Report | None = None,
    stop_reason: Callable[[], str | None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> str:
    """`train_on_ray` with Ray connected and the run's devices chosen.

    Args:
        ray: connected.
        config: of the run.
        console: shows the run's progress.
        all_ranks: whether to show ranks other than the first as well.
        body: what a worker does instead of training.
        report: receives the events and metrics of rank 0.
        stop_reason: called while the workers train; returns why they have to save and exit, or None.
        check: runs while Ray Train's controller starts, which takes as long; no worker starts before it returns.
    """
    board = ray.remote(num_cpus=0, max_restarts=0)(Board).options(**here(ray)).remote(config.ray.max_failures)
    settings = WorkerSettings(config, board, all_ranks, report)
    fit = _Fit(config, settings, body)
    try:
        check()
    except BaseException:
        fit.give_up()
        raise
    board.allow_start.remote()
    with StopSignal().listening() as stop:
        while True:
            _follow(ray, fit, board, config, console, stop, stop_reason)
            reason = fit.result()
            if reason == FINISHED:
                return storage_of_run(config).url
            sentence = ray.get(board.restart.remote(reason))
            if sentence is not None:
                raise WorkersLostError(sentence)
            fit = _Fit(config, settings, body)


class _Fit:
    """One run of Ray Train, in its own thread, since Ray would handle SIGINT itself in the main thread.

    The thread imports Ray Train and torch while the main thread runs the checks.
    """

    def __init__(self, config: RunConfig, settings: WorkerSettings, body: Body | None):
        self._make = lambda: _trainer(config, settings, body)
        self._made, self._given_up = threading.Event(), False
        self._value: str | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._go, name="ray-train", daemon=True)
        self._thread.start()

    def _go(self) -> None:
        try:
            trainer = self._make()
            self._made.set()
            if not self._given_up:
                self._value = trainer.fit().return_value
        except BaseException as error:
            self._error = error
        finally:
            self._made.set()

    def give_up(self) -> None:
        """Prevents the start; waits for the imports to end, since a process that exits during them crashes."""
        self._given_up = True
        self._made.wait()

    @property
    def is_over(self) -> bool:
        """Whether the run of Ray Train has ended."""
        return not self._thread.is_alive()

    def result(self) -> str:
        """`FINISHED`, or a text on why other workers are needed.

        Raises:
            EbmscaleError: the error that ended the run.
        """
        if self._error is None:
            return str(self._value)
        cause: Any = self._error
        while hasattr(cause, "controller_failure"):
            cause = cause.controller_failure
        if isinstance(cause, EbmscaleError):
            raise cause from self._error
        return f"{type(cause).__name__}: {' '.join(str(cause).split())[-400:]}"


def _trainer(config: RunConfig, settings: WorkerSettings, body: Body | None) -> Any:
    try:
        from ray.train.torch import TorchTrainer  # noqa: PLC0415
        from ray.train.v2.api import config as train  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"This needs Ray Train ({error}); install it: {INSTALL}.") from error

    block, gpus = config.ray, config.ray.gpus_per_worker or 0
    resources: dict[str, float] = {"CPU": block.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    run_config: Any = train.RunConfig(
        name=config.run.name,
        storage_path=str(Path(tempfile.gettempdir()) / "ebmscale-ray-train"),  # stays empty
        failure_config=train.FailureConfig(max_failures=-1, max_preemption_failures=-1),
        callbacks=callbacks(settings.board, config.checkpoint.grace_s),
        logging_config=train.LoggingConfig("ERROR"),
    )
    return TorchTrainer(
        enter,
        train_loop_config={"body": body, "settings": settings},
        torch_config=torch_config(_collective_timeout_s(config)),
        scaling_config=train.ScalingConfig(
            num_workers=block.num_workers,
            use_gpu=gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=block.resize_every_s,
        ),
        run_config=run_config,
    )


def _follow(
    ray: Any,
    fit: _Fit,
    board: Any,
    config: RunConfig,
    console: Terminal,
    stop: StopSignal,
    stop_reason: Callable[[], str | None],
) -> None:
    """Prints the workers' lines until Ray Train has ended."""
    over = False
    while not over:
        over = fit.is_over
        try:
            news = ray.get(board.read.remote(), timeout=60)
        except ray.exceptions.RayError as error:
            raise WorkersLostError(
                f"The Ray cluster was lost ({type(error).__name__}); run the same command to resume from the last "
                "checkpoint."
            ) from error
        for line in news.lines:
            console.print(line)
        for reason in (stop.name, stop_reason()):
            if reason is not None:
                board.request.remote(reason)
        if over:
            return
        if stop.name is not None and news.num_workers == 0:
            raise Interrupted(
                f"Stopped by {stop.name}, with nothing saved since the last checkpoint; run the same command to resume."
            )
        if news.num_workers == 0 and news.idle_s > config.ray.wait_s:
            raise WorkersLostError(_too_few(ray, config))
        time.sleep(READ_S)


def _too_few(ray: Any, config: RunConfig) -> str:
    have = ray.cluster_resources()
    return (
        f"{config.ray.least_workers} worker(s) could not start within {config.ray.wait_s:.0f} s: each needs "
        f"{config.ray.cpus_per_worker:g} CPUs and {config.ray.gpus_per_worker or 0} GPUs, and the cluster has "
        f"{have.get('CPU', 0):g} and {have.get('GPU', 0):g}; add nodes or lower ray.num_workers, then run the same "
        "command to resume."
    )


def _collective_timeout_s(config: RunConfig) -> int:
    """The limit of a collective operation in seconds, which is above every limit of the watch."""
    limits = config.ray.limits
    longest = max(limits.setup_s, limits.update_s, limits.chain_s, limits.checkpoint_s)
    unlimited = 0 in (limits.setup_s, limits.update_s, limits.chain_s, limits.checkpoint_s)
    return 7 * 86400 if unlimited else int(2 * longest) + 60
