"""What is measured between two updates: the evidence on held-out images, and the metrics of an interval."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ebmscale.density.schedule import Advance, Finish
from ebmscale.networks import weight_of
from ebmscale.seeds import StreamNoise
from ebmscale.training.inference import infer
from ebmscale.training.run import Run


@torch.no_grad()
def _decode(run: Run, z: Tensor) -> Tensor:
    """The sampling copy's images at latents z (B, Z), in fp32."""
    return run.sampling.model.generator(z.to(weight_of(run.sampling.model).dtype)).float()


def take_evidence(run: Run) -> dict[str, Any]:
    """Infers the held-out images, measures the ratio on them, and carries out the scheduler's decision.

    Raises:
        Stopped: a rank was asked to stop during a chain; nothing has changed.
    """
    with run.timer.part("evidence"), run.stages.undone_if_stopped():
        seed, position = run.config.run.seed, run.samples_seen
        at = run.stages.measured_at(position)
        noise = StreamNoise(seed, "held-out-posterior", at, run.data.held_out_streams, run.world.device)
        held_out = run.data.held_out
        sample = infer(run, held_out, noise)
        event: dict[str, Any] = {"stage": run.stages.state.stage, "num_frozen": run.stages.frozen.num_stages}
        if tried := run.stages.latents.tried:
            event["base"] = {"components": max(tried, key=lambda one: tried[one]), "held_out_nats": tried}
        if not run.config.model.is_identity:
            mean = _decode(run, sample.z)
            errors = (held_out - mean).square().flatten(1).mean(1).double().sum()
            counts = run.world.sum(errors.new_tensor([float(errors), len(held_out)]))
            event["held_out_mse"] = float(counts[0] / counts[1])
            if not math.isfinite(event["held_out_mse"]):
                return event | {"diverged": "the reconstructions of held-out samples are not finite"}
            run.keep_residuals(mean)
        if not run.stages.trains_at(position):
            return event
        evidence = run.stages.evidence(sample.z, position)
        if run.config.num_live and not math.isfinite(evidence.loss):  # for stages the scheduler handles it
            return event | {"diverged": "the evidence of the ratios is not finite"}
        decision = run.stages.decide(evidence, position)
        return event | {
            "evidence": asdict(evidence),
            "memorised": None if run.stages.memorised is None else asdict(run.stages.memorised),
            "decision": type(decision).__name__,
            "freeze": isinstance(decision, Advance) or (isinstance(decision, Finish) and decision.freeze),
            "reason": decision.reason,
            "state": asdict(run.stages.state),
            "checks": [
                {"stage": stage, **asdict(check), "fails": check.fails} for stage, check in run.stages.checks.items()
            ],
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
