"""THE loop: one pass reads a batch, infers its latents, trains generator and ratio, and lets the scheduler decide.

Method: Xiao & Han, NeurIPS 2022, one stage after another; see `density.schedule` for when a stage moves on.
"""

from dataclasses import asdict
from typing import Any

from ebmscale.config import RunConfig
from ebmscale.data.stream import Batch
from ebmscale.density.schedule import Advance, Finish
from ebmscale.errors import Interrupted
from ebmscale.seeds import StreamNoise
from ebmscale.training.guard import StopSignal, check_finite, check_rollbacks
from ebmscale.training.metrics import RunLog
from ebmscale.training.run import Run, open_run
from ebmscale.training.tasks import PosteriorSample, generator_loss, langevin_settings, sample_posterior, to_pixels
from ebmscale.training.view import View
from ebmscale.world import World


def train(config: RunConfig, view: View, world: World, stop: StopSignal) -> str:
    """Trains a run to its budget, or resumes it (collective).

    Returns:
        The run's address.

    Raises:
        EbmscaleError: bad data or storage, divergence, or `Interrupted` after a signal, with the state saved.
    """
    run = open_run(config, world)
    log = RunLog(run.storage, run.samples_seen, config.metrics.tensorboard) if world.is_first else None
    view.start(run)
    last_save = run.samples_seen
    batches = iter(run.stream)
    try:
        while run.samples_seen < config.train.max_samples:
            with run.timer.part("data"):
                batch = next(batches)
            train_batch(run, batch)
            before, run.samples_seen = run.samples_seen, batch.end

            if _passed(before, batch.end, config.stages.evidence_every):
                event = take_evidence(run)
                view.event(run, event)
                if log is not None:
                    log.event(run.samples_seen, event)
                check_rollbacks(run.stages.state, run.stages.criteria)

            if _passed(before, batch.end, config.metrics.every_samples):
                metrics = collect_metrics(run)
                view.metrics(run, metrics)
                if log is not None:
                    log.metrics(run.samples_seen, metrics)

            stopping = world.any(stop.name is not None)
            done = run.samples_seen >= config.train.max_samples
            if stopping or done or _passed(before, batch.end, config.checkpoint.every_samples):
                with run.timer.part("checkpoint"):
                    run.save()
                last_save = run.samples_seen
            if stopping and not done:
                break
        run.store.wait()
    finally:
        run.stream.close()
        view.close()
        if log is not None:
            log.close()
    if run.samples_seen < config.train.max_samples:
        raise Interrupted(
            f"Stopped by {stop.name or 'another worker'}; saved at {last_save:,} of {config.train.max_samples:,} "
            "samples: run the same command to go on."
        )
    return run.storage.url


def train_batch(run: Run, batch: Batch) -> None:
    """One batch: posterior chains, a generator update, the prior chains, the ratio updates."""
    config, meter, timer = run.config, run.meter, run.timer
    x = to_pixels(batch.images.to(run.world.device))
    with timer.part("posterior"):
        noise = StreamNoise(config.run.seed, "posterior", batch.start, batch.streams, run.world.device)
        sample = infer(run, x, noise)
    with timer.part("generator"):
        mean, encoded = run.generator(sample.z, x)
        loss, squared_error = generator_loss(x, mean, config.model.sigma, encoded, sample)
        run.generator.backward(loss.sum() * (run.world.size / config.train.batch_size))
        grad_norm = run.generator.step(run.generator_rate())
        check_finite("gradient of the generator", grad_norm, batch.start)
        run.sampling.refresh()
    with timer.part("prior"):
        run.stages.observe(sample.z, batch.streams)
        run.stages.advance_prior(batch.start)
    with timer.part("ratio"):
        ratio = run.stages.update(batch.start)
    meter.add("train/mse", squared_error.mean(), len(x))
    meter.add("train/generator_grad_norm", grad_norm)
    if sample.trace.drift.numel():
        meter.add("chain/posterior_drift", sample.trace.drift[-1])
        meter.add("chain/posterior_log_density_first", sample.trace.log_density[0])
        meter.add("chain/posterior_log_density_last", sample.trace.log_density[-1])
    if run.stages.trace is not None:
        meter.add("chain/prior_drift", run.stages.trace.drift[-1])
        meter.add("chain/prior_log_density", run.stages.trace.log_density[-1])
    if ratio is not None:
        meter.add("train/ratio_loss", ratio.loss)
        meter.add("train/ratio_grad_norm", ratio.grad_norm)


def infer(run: Run, x: Any, noise: StreamNoise) -> PosteriorSample:
    """Posterior latents of images x (B, C, H, W) under the current prior, by the configured chain."""
    settings = langevin_settings(run.config.posterior)
    dim = run.config.model.latent_dim
    first, steps = noise.normal(dim), noise.normal(settings.num_steps, dim)
    return sample_posterior(run.sampling.model, run.config.model.sigma, run.stages.prior, x, first, steps, settings)


def take_evidence(run: Run) -> dict[str, Any]:
    """Infers the held-out images, measures the ratio on them, and carries out the scheduler's decision."""
    with run.timer.part("evidence"):
        seed, position = run.config.run.seed, run.samples_seen
        noise = StreamNoise(seed, "held-out-posterior", position, run.held_out_streams, run.world.device)
        sample = infer(run, run.held_out, noise)
        mean = run.sampling.model.generator(sample.z.to(next(run.sampling.model.parameters()).dtype)).float()
        errors = (run.held_out - mean).square().flatten(1).mean(1).double().sum()
        counts = run.world.sum(errors.new_tensor([float(errors), len(run.held_out)]))
        event: dict[str, Any] = {
            "stage": run.stages.state.stage,
            "num_frozen": run.stages.prior.num_stages,
            "held_out_mse": float(counts[0] / counts[1]),
        }
        if run.stages.state.finished or not run.stages.buffer.is_ready():
            return event
        evidence = run.stages.evidence(sample.z, position)
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
    seconds, total = run.timer.take()
    return {
        **means,
        "stage": run.stages.state.stage,
        "num_frozen": run.stages.prior.num_stages,
        "damaged": sum(run.stream.damaged.values()),
        "time": {"total_s": total, **{f"{part}_s": value for part, value in seconds.items()}},
    }


def _passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` samples lies in (before, now]."""
    return before // every != now // every
