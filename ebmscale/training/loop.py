"""THE loop: one pass reads a batch, infers its latents, trains generator and ratio, and lets the scheduler decide.

Method: Xiao & Han, NeurIPS 2022, one stage after another; see `density.schedule` for when a stage moves on.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.data.stream import Batch
from ebmscale.density.losses import chance_loss, nan_above_limit
from ebmscale.density.schedule import Advance, Finish
from ebmscale.errors import DivergenceError, Interrupted
from ebmscale.model.pixels import mirrored, to_pixels
from ebmscale.model.posterior import PosteriorSample
from ebmscale.model.run_folder import run_storage
from ebmscale.seeds import StreamNoise
from ebmscale.stop import StopSignal
from ebmscale.training.claim import Launch
from ebmscale.training.guard import check_stage_rollbacks
from ebmscale.training.inference import infer
from ebmscale.training.metrics import EVENTS_FILE, GUARD_FILE, METRICS_FILE, RunLog
from ebmscale.training.objective import generator_loss
from ebmscale.training.opening import open_run
from ebmscale.training.owner import Lease
from ebmscale.training.profile import Profile
from ebmscale.training.run import Run
from ebmscale.training.stage_samples import stage_file, stage_picture
from ebmscale.training.stopping import Stopped
from ebmscale.training.view import View
from ebmscale.world import World

MOST_LOST = 0.5
"""The share of a batch's posterior chains that may diverge before its update is left out."""


def train(config: RunConfig, view: View, world: World, stop: StopSignal, launch: Launch | None = None) -> str:
    """Trains a run to its budget, or resumes it, as its one writer (collective).

    Args:
        config: of the run.
        view: shows it.
        world: this process's place.
        stop: whether it is asked to stop.
        launch: what started this process, where a launcher starts it again by itself.

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
    profile = None
    if config.profile and world.is_first:
        profile = Profile(run.config, run.storage, run.timer, world.device, run.sampling)
    view.start(run)
    batches = run.batches()
    stopping = False
    try:
        while True:
            done = run.samples_seen >= config.train.max_samples
            if run.due("evidence", config.stages.evidence_every, done) and not stopping:
                stopping = not _measure(run, view, log)
            if run.due("metrics", config.metrics.every_samples, done) and not stopping:
                _report_metrics(run, view, log)

            last = stopping or done
            if last or (run.due("checkpoint", config.checkpoint.every_samples) and run.saver.phase == "idle"):
                with run.timer.part("checkpoint"):
                    _save(run, stop, last)
            if last:
                break

            try:
                with run.timer.part("data"):
                    batch = _next_batch(batches, world)
                view.batch(run, batch)
                with profile.batch() if profile is not None else nullcontext():
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


@dataclass(frozen=True)
class BatchReport:
    """What one batch gave on this rank.

    Attributes:
        squared_error: sum over its images of the squared error per pixel; NaN where the generator stands still.
        num_images: of this rank.
        ratio_loss: mean loss of the ratio updates, None where there were none.
        bad: whether an update was left out (the same on every rank).
        chain_step_s: mean seconds of a step of the posterior chain.
    """

    squared_error: Tensor
    num_images: int
    ratio_loss: Tensor | None
    bad: bool
    chain_step_s: float


def train_batch(run: Run, batch: Batch) -> BatchReport:
    """One batch: posterior chains, a generator update, the prior chains, the ratio updates.

    Raises:
        Stopped: a rank was asked to stop during the posterior chains; nothing has changed.
    """
    config, meter, timer, guard = run.config, run.meter, run.timer, run.guard
    x = to_pixels(batch.images.to(run.world.device))
    if config.data.flip:
        x = mirrored(x, StreamNoise(config.run.seed, "flip", batch.start, batch.streams, run.world.device).uniform())
    begin = time.perf_counter()
    with timer.part("posterior"):
        noise = StreamNoise(config.run.seed, "posterior", batch.start, batch.streams, run.world.device)
        sample = infer(run, x, noise)
    chain_step_s = (time.perf_counter() - begin) / max(len(sample.trace.drift), 1)
    with timer.part("generator"):
        if run.generator_trains:
            squared_error, grad_norm = _update_generator(run, x, sample)
        else:  # a pass through it would tell nothing that the held-out images do not
            squared_error, grad_norm = x.new_full((len(x),), math.nan), 0.0
    if not math.isfinite(grad_norm):
        return BatchReport(squared_error.sum(), len(x), None, True, chain_step_s)
    with timer.part("prior"):
        run.stages.observe(sample.z if sample.moments is None else sample.moments, batch.streams)
        run.stages.advance_prior(batch.start)
    with timer.part("ratio"):
        limit = guard.ratio_limit(run.stages.state, chance_loss(config.stages.magnification))
        ratio = run.stages.update(batch.start, guard.state.rate_scale, limit)
    if run.generator_trains:
        meter.add("train/mse", squared_error.sum() / max(len(x), 1), len(x))
        meter.add("train/generator_grad_norm", grad_norm)
    meter.add("chain/restarted", (sample.num_lost + run.stages.latents.pools.take_restarted()) * run.world.size)
    if sample.trace.drift.numel():
        meter.add("chain/posterior_drift", sample.trace.drift[-1])
        meter.add("chain/posterior_log_density_first", sample.trace.log_density[0])
        meter.add("chain/posterior_log_density_last", sample.trace.log_density[-1])
    if run.stages.trace is not None:
        meter.add("chain/prior_drift", run.stages.trace.drift[-1])
        meter.add("chain/prior_log_density", run.stages.trace.log_density[-1])
    if ratio is not None and not ratio.bad:
        meter.add("train/ratio_loss", ratio.loss)
        meter.add("train/ratio_grad_norm", ratio.grad_norm)
    return BatchReport(
        squared_error.sum(),
        len(x),
        None if ratio is None else ratio.loss,
        ratio is not None and ratio.bad,
        chain_step_s,
    )


def _update_generator(run: Run, x: Tensor, sample: PosteriorSample) -> tuple[Tensor, float]:
    """One update of generator and encoder; squared errors per pixel (B,) and the gradient's norm."""
    config, guard = run.config, run.guard
    mean, encoded = run.generator(sample.z, x, sample.drawn)
    loss, squared_error = generator_loss(x, mean, config.model.sigma, encoded, sample)
    limit = guard.error_limit if sample.num_lost <= MOST_LOST * len(x) else -math.inf
    scaled = loss.sum() * (run.world.size / config.train.batch_size)
    run.generator.backward(nan_above_limit(scaled, squared_error.sum() / max(len(x), 1), limit))
    grad_norm = run.generator.step(run.generator_rate())
    run.sampling.refresh()
    if run.average is not None and math.isfinite(grad_norm):
        run.average.update(config.train.batch_size / config.train.generator.ema_samples)
    return squared_error, grad_norm


@torch.no_grad()
def _decode(run: Run, z: Tensor) -> Tensor:
    """The sampling copy's images at latents z (B, Z), in fp32."""
    return run.sampling.model.generator(z.to(next(run.sampling.model.parameters()).dtype)).float()


def take_evidence(run: Run) -> dict[str, Any]:
    """Infers the held-out images, measures the ratio on them, and carries out the scheduler's decision.

    Raises:
        Stopped: a rank was asked to stop during a chain; nothing has changed.
    """
    with run.timer.part("evidence"), run.stages.latents.pools.undone_if_stopped():
        seed, position = run.config.run.seed, run.samples_seen
        noise = StreamNoise(seed, "held-out-posterior", position, run.data.held_out_streams, run.world.device)
        held_out = run.data.held_out
        sample = infer(run, held_out, noise)
        mean = _decode(run, sample.z)
        errors = (held_out - mean).square().flatten(1).mean(1).double().sum()
        counts = run.world.sum(errors.new_tensor([float(errors), len(held_out)]))
        event: dict[str, Any] = {
            "stage": run.stages.state.stage,
            "num_frozen": run.stages.frozen.num_stages,
            "held_out_mse": float(counts[0] / counts[1]),
        }
        if not math.isfinite(event["held_out_mse"]):
            return event | {"diverged": "the reconstructions of held-out images are not finite"}
        run.keep_residuals(mean)
        if not run.stages.trains_at(position):
            return event
        evidence = run.stages.evidence(sample.z, position)
        if run.config.num_live and not math.isfinite(evidence.loss):  # of stages, the scheduler takes care
            return event | {"diverged": "the evidence of the ratios is not finite"}
        decision = run.stages.decide(evidence, position)
        return event | {
            "evidence": asdict(evidence),
            "decision": type(decision).__name__,
            "freeze": isinstance(decision, Advance) or (isinstance(decision, Finish) and decision.freeze),
            "reason": decision.reason,
            "state": asdict(run.stages.state),
        }


def collect_metrics(run: Run) -> dict[str, Any]:
    """The interval's metrics, reduced over ranks (collective), and the time by part on this rank."""
    means = run.meter.reduce(run.world)
    seconds = run.timer.take()
    return {
        **means,
        "stage": run.stages.state.stage,
        "num_frozen": run.stages.frozen.num_stages,
        "damaged": sum(run.stream.damaged.values()) if run.stream is not None else 0,
        "rollbacks": run.guard.state.rollbacks,
        "time": seconds,
    }


def _open_log(run: Run, lease: Lease) -> RunLog:
    """The run's files, up to what its state knows of, written before any checkpoint that knows of more."""
    kept = {EVENTS_FILE: run.done_at["evidence"], METRICS_FILE: run.done_at["metrics"], GUARD_FILE: run.samples_seen}
    log = RunLog(run.storage, kept, run.config.metrics.tensorboard, lease.check)
    run.saver.before_manifest = log.flush
    return log


def _report_metrics(run: Run, view: View, log: RunLog | None) -> None:
    metrics = collect_metrics(run)
    run.mark("metrics")
    view.metrics(run, metrics)
    if log is not None:
        log.metrics(run.samples_seen, metrics)


def _measure(run: Run, view: View, log: RunLog | None) -> bool:
    """Takes and reports evidence; False where that was stopped, and is to be done after the resume."""
    try:
        event = take_evidence(run)
    except Stopped:
        return False
    run.mark("evidence")
    of_ratio = {name: event["evidence"][name] for name in ("loss", "auc", "kl_bound")} if "evidence" in event else {}
    run.keep_measured({"held_out_mse": event["held_out_mse"]} | of_ratio)
    view.event(run, event)
    if log is not None:
        log.event(run.samples_seen, event)
        if event.get("freeze"):
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


def _save(run: Run, stop: StopSignal, last: bool) -> None:
    """Begins a checkpoint; the last one is waited for, but after a stop no longer than the time of grace."""
    if not last:
        run.save()
        return
    out_of_time = _out_of_time(stop, run.config.checkpoint.grace_s)
    run.saver.finish(out_of_time)
    if run.saver.last_saved != run.samples_seen:
        run.save()
        run.saver.finish(out_of_time)


def _out_of_time(stop: StopSignal, grace_s: float) -> Callable[[], bool]:
    return lambda: stop.since is not None and time.monotonic() - stop.since > grace_s


def _agree(run: Run, stop: StopSignal, report: BatchReport) -> tuple[bool, dict[str, Any] | None]:
    """The one reduction at a batch's end: whether to stop, how saving goes on, and what the guard thinks (collective).

    Returns:
        Whether any rank was asked to stop; and, of a bad update, what the guard saw.
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
        return num_stopping > 0, None
    return num_stopping > 0, {
        "action": verdict,
        "squared_error": error,
        "ratio_loss": mean_ratio,
        "usual_squared_error": before.error,
        "usual_ratio_loss": before.ratio_loss,
        "bad_in_row": run.guard.state.bad_in_row,
    }


def _set_back(run: Run, view: View, log: RunLog | None, batch: Batch, bad: dict[str, Any]) -> None:
    """Records a bad batch with the keys of its samples, and goes back to a checkpoint where the guard says so."""
    keys = [key for of_rank in run.world.gather_objects(batch.keys) for key in of_rank]
    if log is not None:
        log.guard(run.samples_seen, bad | {"start": batch.start, "keys": keys})
    view.bad(run, bad)
    if bad["action"] == "roll back":
        reason = (
            f"{bad['bad_in_row']} updates in a row had a loss or chains that were not finite or far above the usual"
        )
        _go_back(run, log, reason)


def _go_back(run: Run, log: RunLog | None, reason: str) -> None:
    """Goes back to a checkpoint, and keeps what is left of it."""
    with run.timer.part("checkpoint"):
        run.saver.finish()
        position = run.roll_back(reason)
        run.save()
    if log is not None:
        rate_scale = run.guard.state.rate_scale
        log.guard(run.samples_seen, {"action": "rolled back", "to": position, "rate_scale": rate_scale})
