"""The training loop: each pass reads a batch, infers its latents, trains generator and ratio, and asks the scheduler.
The method is that of Xiao & Han (NeurIPS 2022): one stage after another. `density.schedule` decides when a stage ends.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from ebmscale.config import RunConfig
from ebmscale.data.stream import Batch
from ebmscale.errors import DivergenceError, Interrupted
from ebmscale.model.run_folder import run_storage
from ebmscale.stop import StopSignal
from ebmscale.training.claim import Launch
from ebmscale.training.guard import check_stage_rollbacks
from ebmscale.training.measurement import collect_metrics, take_evidence
from ebmscale.training.metrics import EVENTS_FILE, GUARD_FILE, METRICS_FILE, RunLog
from ebmscale.training.opening import open_run
from ebmscale.training.owner import Lease
from ebmscale.training.profile import Profile
from ebmscale.training.restore import roll_back
from ebmscale.training.run import Run
from ebmscale.training.sample_picture import sample_picture
from ebmscale.training.stage_samples import stage_file, stage_picture
from ebmscale.training.stopping import Stopped
from ebmscale.training.trackers import open_trackers
from ebmscale.training.update import BatchReport, train_batch
from ebmscale.training.view import View
from ebmscale.world import World


def train(config: RunConfig, view: View, world: World, stop: StopSignal, launch: Launch | None = None) -> str:
    """Trains a run to its budget, or resumes it, as its one writer (collective).

    Args:
        config: of the run.
        view: shows it.
        world: rank and size of this process.
        stop: whether it is asked to stop.
        launch: identifies the launcher, if one restarts this process by itself.

    Returns:
        The run's address.

    Raises:
        EbmscaleError: bad data or storage, divergence, another writer, or `Interrupted` after a stop, with the state
            saved.
    """
    with Lease(run_storage(config), launch) as lease:
        return _train(config, view, world, stop, lease)


def _train(config: RunConfig, view: View, world: World, stop: StopSignal, lease: Lease) -> str:
    run = open_run(config, world, stop, lease)
    log = _open_log(run, lease) if world.is_first else None
    measured: Callable[[], AbstractContextManager[None]] = nullcontext
    if config.profile and world.is_first:
        measured = Profile(run.config, run.storage, run.timer, world.device, run.sampling).batch
    view.start(run.summary(), run.activity)
    batches = run.batches()
    stopping = False
    try:
        while True:
            done = run.is_done
            if run.due("evidence", config.stages.evidence_every, done) and not stopping:
                stopping = not _measure(run, view, log)
                done = run.is_done  # a decision may have ended the last stage
            if run.due("metrics", config.metrics.every_samples, done) and not stopping:
                _report_metrics(run, view, log)

            if stopping or done:
                with run.timer.part("checkpoint"):
                    run.save_and_wait(_out_of_time(stop, config.checkpoint.grace_s))
                break
            if run.is_checkpoint_due:
                with run.timer.part("checkpoint"):
                    run.save_if_idle(_out_of_time(stop, config.checkpoint.grace_s))

            try:
                with run.timer.part("data"):
                    batch = _next_batch(batches, world)
                view.batch(batch)
                with measured():
                    report = train_batch(run, batch)
            except Stopped:
                stopping = True
                continue
            run.finish(batch)
            stopping, bad = _agree(run, stop, report)
            if bad is not None:
                _set_back(run, view, log, batch, bad)
    except DivergenceError:
        run.saver.finish()
        raise
    finally:
        run.close()
        view.close()
        if log is not None:
            log.close()
    if not done:
        raise Interrupted(
            f"Stopped by {stop.name or 'another worker'}; saved at {run.samples_seen:,} of "
            f"{config.train.max_samples:,} samples: run the same command to continue."
        )
    return run.storage.url


def _next_batch(batches: Iterator[Batch], world: World) -> Batch:
    """The next batch (collective).

    Raises:
        Stopped: a stop ended some rank's wait for its storage.
    """
    batch = None
    with suppress(Interrupted):
        batch = next(batches)
    if world.any(batch is None) or batch is None:
        raise Stopped
    return batch


def _open_log(run: Run, lease: Lease) -> RunLog:
    """Opens the run's log files, cut at the position of its state. They are flushed before a checkpoint completes."""
    kept = {EVENTS_FILE: run.done_at["evidence"], METRICS_FILE: run.done_at["metrics"], GUARD_FILE: run.samples_seen}
    trackers = open_trackers(run.config, str(run.storage.url))
    log = RunLog(run.storage, kept, run.config.metrics.tensorboard, lease.check, trackers)
    run.before_manifests(log.flush)
    return log


def _report_metrics(run: Run, view: View, log: RunLog | None) -> None:
    metrics = collect_metrics(run)
    run.mark("metrics")
    view.metrics(run.samples_seen, metrics)
    if log is not None:
        log.metrics(run.samples_seen, metrics)


def _measure(run: Run, view: View, log: RunLog | None) -> bool:
    """Measures and reports the evidence. False if a stop interrupted it; then the resumed run measures it."""
    try:
        event = take_evidence(run)
    except Stopped:
        return False
    run.mark("evidence")
    of_ratio = {name: event["evidence"][name] for name in ("loss", "auc", "kl_bound")} if "evidence" in event else {}
    of_samples = {name: event[name] for name in ("held_out_mse",) if name in event}
    run.keep_measured(of_samples | of_ratio)
    view.event(run.samples_seen, event)
    if log is not None:
        log.event(run.samples_seen, event)
        shows = run.shows_images
        if shows and log.takes_pictures and (event.get("freeze") or run.samples_seen >= run.config.train.max_samples):
            log.picture(run.samples_seen, "samples", sample_picture(run))
        if shows and event.get("freeze"):
            log.keep(stage_file(event["stage"], run.samples_seen), stage_picture(run))
    if "diverged" in event:
        if run.samples_seen >= run.config.train.max_samples:
            raise DivergenceError(
                f"Training diverged: at its end {event['diverged']}; lower train.generator.rate, train.ratio.rate or "
                "the chain's step_size."
            )
        _go_back(run, log, event["diverged"])
    check_stage_rollbacks(run.stages.state, run.stages.settings.criteria)
    return True


def _out_of_time(stop: StopSignal, grace_s: float) -> Callable[[], bool]:
    """Whether more than `grace_s` seconds have passed since a stop was requested."""
    return lambda: stop.since is not None and time.monotonic() - stop.since > grace_s


def _agree(run: Run, stop: StopSignal, report: BatchReport) -> tuple[bool, dict[str, Any] | None]:
    """The only reduction at the end of a batch: of stops, of saving, and of the losses for the guard (collective).

    Returns:
        Whether any rank was asked to stop; and, for a bad update, the guard's verdict with the losses.
    """
    writing, failed = run.saver.flags()
    ratio_loss = report.ratio_loss if report.ratio_loss is not None else report.squared_error.new_zeros(())
    measured = torch.stack([report.squared_error.double(), ratio_loss.double()])
    counts = [report.num_images, report.ratio_loss is not None, report.chain_step_s, writing, failed, bool(stop.name)]
    sums = run.world.sum(torch.cat([measured, measured.new_tensor(counts)])).tolist()
    squared_error, ratio_sum, num_images, num_ratios, step_s, num_writing, num_failed, num_stopping = sums
    run.saver.advance(num_writing > 0, num_failed > 0)
    run.poll.pace(step_s / run.world.size)
    error = squared_error / max(num_images, 1.0)
    mean_ratio = ratio_sum / num_ratios if num_ratios else None
    before = run.guard.state
    verdict = run.guard.observe(error, mean_ratio, run.stages.state, report.bad)
    if verdict == "good":
        run.noise_level.observe(error, run.config.train.batch_size)
        return num_stopping > 0, None
    return num_stopping > 0, {
        "action": verdict,
        "squared_error": error if run.generator_trains else None,
        "ratio_loss": mean_ratio,
        "usual_squared_error": before.error,
        "usual_ratio_loss": before.ratio_loss,
        "bad_in_row": run.guard.state.bad_in_row,
    }


def _set_back(run: Run, view: View, log: RunLog | None, batch: Batch, bad: dict[str, Any]) -> None:
    """Records a bad batch with the keys of its samples. Goes back to a checkpoint if the guard requires it."""
    keys = [key for of_rank in run.world.gather_objects(batch.keys) for key in of_rank]
    if log is not None:
        log.guard(run.samples_seen, bad | {"start": batch.start, "keys": keys})
    view.bad(run.samples_seen, bad)
    if bad["action"] == "roll back":
        reason = (
            f"{bad['bad_in_row']} updates in a row had a loss or chains that were not finite or far above the usual"
        )
        _go_back(run, log, reason)


def _go_back(run: Run, log: RunLog | None, reason: str) -> None:
    """Goes back to the last good checkpoint, and records that."""
    with run.timer.part("checkpoint"):
        position = roll_back(run, reason)
    if log is not None:
        rate_scale = run.guard.state.rate_scale
        log.guard(run.samples_seen, {"action": "rolled back", "to": position, "rate_scale": rate_scale})
