"""One update: it infers the latents of a batch, and trains generator and ratio on them."""

import math
import time
from dataclasses import dataclass

from torch import Tensor

from ebmscale.data.stream import Batch
from ebmscale.density.losses import chance_loss, nan_above_limit
from ebmscale.model.pixels import mirrored, to_pixels
from ebmscale.model.posterior import PosteriorSample
from ebmscale.seeds import StreamNoise
from ebmscale.training.inference import infer
from ebmscale.training.objective import generator_loss
from ebmscale.training.run import Run

MOST_LOST = 0.5
"""If more than this share of a batch's posterior chains diverges, its update is skipped."""


@dataclass(frozen=True)
class BatchReport:
    """The results of one batch on this rank.

    Attributes:
        squared_error: sum over its images of the squared error per pixel; NaN if the generator no longer trains.
        num_images: of this rank.
        ratio_loss: mean loss of the ratio updates; None if there were none.
        bad: whether an update was skipped (the same on every rank).
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
    if run.stages.latents.wants_held_out(batch.start):
        noise = StreamNoise(config.run.seed, "base", batch.start, run.data.held_out_streams, run.world.device)
        run.stages.latents.judge_base_by(infer(run, run.data.held_out, noise).as_observed)
    with timer.part("posterior"):
        noise = StreamNoise(config.run.seed, "posterior", batch.start, batch.streams, run.world.device)
        sample = infer(run, x, noise)
    chain_step_s = (time.perf_counter() - begin) / max(len(sample.trace.drift), 1)
    with timer.part("generator"):
        if run.generator_trains:
            squared_error, grad_norm = _update_generator(run, x, sample)
        else:  # no pass through it: held-out images measure its error
            squared_error, grad_norm = x.new_full((len(x),), math.nan), 0.0
    if not math.isfinite(grad_norm):
        return BatchReport(squared_error.sum(), len(x), None, True, chain_step_s)
    with timer.part("prior"):
        run.stages.observe(sample.as_observed, batch.streams)
        run.stages.advance_prior(batch.start)
    with timer.part("ratio"):
        limit = guard.ratio_limit(run.stages.state, chance_loss(config.stages.magnification))
        ratio = run.stages.update(batch.start, guard.state.rate_scale, limit)
    if run.generator_trains:
        meter.add("train/mse", squared_error.sum() / max(len(x), 1), len(x))
        meter.add("train/generator_grad_norm", grad_norm)
        if run.noise_level.is_learned:
            meter.add("train/sigma", run.noise_level.value)
    meter.add("chain/restarted", (sample.num_lost + run.stages.take_restarted()) * run.world.size)
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
    loss, squared_error = generator_loss(x, mean, run.noise_level.value, encoded, sample)
    limit = guard.error_limit if sample.num_lost <= MOST_LOST * len(x) else -math.inf
    scaled = loss.sum() * (run.world.size / config.train.batch_size)
    run.generator.backward(nan_above_limit(scaled, squared_error.sum() / max(len(x), 1), limit))
    grad_norm = run.generator.step(run.generator_rate())
    run.sampling.refresh()
    if run.average is not None and math.isfinite(grad_norm):
        run.average.update(config.train.batch_size / config.train.generator.ema_samples)
    return squared_error, grad_norm
