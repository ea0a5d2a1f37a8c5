"""Measures seconds of the parts of an update with the real code in one worker, for two shares of the batch."""

import importlib.util
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ebmscale.config import RunConfig
from ebmscale.forecast.process_memory import resident_bytes
from ebmscale.forecast.rehearsal import go_to_last_stage, rehearsal
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.training.measurement import take_evidence
from ebmscale.training.opening import LEAST_HELD_OUT
from ebmscale.training.run import Run
from ebmscale.training.update import train_batch
from ebmscale.world import World

WARM_UPDATES, TIMED_UPDATES = 2, 3
ENGINE_STEPS = 5
UPDATE_PARTS = ("data", "posterior", "generator", "prior", "ratio")


@dataclass(frozen=True)
class Timing:
    """Seconds of a part for a fraction of the batch: `fixed` + `proportional` * fraction."""

    fixed: float
    proportional: float

    @classmethod
    def through(cls, whole: float, part: float, fraction: float) -> "Timing":
        """The line through the seconds of a whole batch and of a fraction of it; both terms are at least zero."""
        if fraction >= 1:
            return cls(0.0, whole)
        proportional = min(max((whole - part) / (1 - fraction), 0.0), whole)
        return cls(whole - proportional, proportional)

    def at(self, fraction: float) -> float:
        """Seconds for a fraction of the batch."""
        return self.fixed + self.proportional * fraction


@dataclass(frozen=True)
class EngineCost:
    """Seconds of one forward pass, backward pass and step on a single row, for `generator` and `ratio` network.

    `generator_adam` and `ratio_adam` are the seconds of the step alone: the part that ZeRO divides among workers.
    """

    generator: float
    ratio: float
    generator_adam: float
    ratio_adam: float


@dataclass(frozen=True)
class UpdateTimes:
    """Measurements of one worker.

    Attributes:
        parts: of an update in the last stage, and `evidence`, by name.
        engines: costs by ZeRO stage, None for the plain engine; without DeepSpeed only the plain one.
        fraction: the smaller share of the batch.
        num_threads: used for the computation.
    """

    parts: Mapping[str, Timing]
    engines: Mapping[int | None, EngineCost]
    fraction: float
    num_threads: int


def measure_updates(
    config: RunConfig, shape: tuple[int, ...], num_workers: int, zero_stages: list[int | None]
) -> UpdateTimes:
    """Measures one worker on the configured device: a run with the plain engine, then each engine by itself.

    Args:
        config: the run.
        shape: (C, H, W).
        num_workers: the greatest number of workers in the plan; the smaller share is that of one of them.
        zero_stages: of the engines to measure if DeepSpeed is installed; the plain one (None) is always measured.
    """
    world = World.from_environment(config.device)
    plain = config.model_copy(update={"engine": "plain"})
    divisor = _largest_divisor(config.data.num_streams, num_workers)
    whole = update_seconds(plain, world)
    part = update_seconds(share_of_run(plain, divisor), world) if divisor > 1 else whole
    parts = {name: Timing.through(whole[name], part[name], 1 / divisor) for name in UPDATE_PARTS}
    parts["evidence"] = Timing(0.0, whole["evidence"])
    wanted = [stage for stage in zero_stages if stage is not None and has_deepspeed()]
    engines = {stage: engine_cost(config, shape, stage, world) for stage in [None, *wanted]}
    return UpdateTimes(parts, engines, 1 / divisor, torch.get_num_threads())


def update_seconds(config: RunConfig, world: World, num_updates: int = TIMED_UPDATES) -> dict[str, float]:
    """Mean seconds of the parts of an update in the last stage, and of a measurement of evidence (collective).

    The run is a new one in a temporary folder. `total` is the mean wall time of an update.
    """
    with rehearsal(config, world) as run:
        go_to_last_stage(run)
        batches = run.batches(config.stages.start_samples)  # ratios train from here on
        _train(run, batches, WARM_UPDATES)
        world.barrier()
        run.timer.take()
        begin = time.perf_counter()
        _train(run, batches, num_updates)
        world.barrier()
        total = time.perf_counter() - begin
        seconds = run.timer.take()
        begin = time.perf_counter()
        take_evidence(run)
        world.barrier()
        evidence = time.perf_counter() - begin
    parts = {part: seconds[f"{part}_s"] / num_updates for part in UPDATE_PARTS}
    return parts | {"evidence": evidence, "total": total / num_updates}


def share_of_run(config: RunConfig, divisor: int) -> RunConfig:
    """The same run with the share of one of `divisor` workers; `divisor` divides the number of streams."""
    streams = config.data.num_streams // divisor
    held_out = max(config.stages.evidence_samples // divisor, math.ceil(LEAST_HELD_OUT / streams) * streams)
    stages = config.stages
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"num_streams": streams}),
            "train": config.train.model_copy(update={"batch_size": -(-config.train.batch_size // divisor)}),
            "prior": config.prior.model_copy(update={"num_chains": config.prior.num_chains // divisor}),
            "stages": stages.model_copy(
                update={
                    "batch_size": -(-stages.batch_size // divisor),
                    "buffer_samples": stages.buffer_samples // divisor,
                    "evidence_samples": held_out,
                }
            ),
        }
    )


def engine_cost(config: RunConfig, shape: tuple[int, ...], zero_stage: int | None, world: World) -> EngineCost:
    """The cost of both engines without the computation, measured on a single row."""
    kind: Literal["plain", "deepspeed"] = "plain" if zero_stage is None else "deepspeed"
    settings = EngineSettings(kind, zero_stage or 0, config.precision)  # type: ignore[arg-type]
    z = torch.zeros(1, config.model.latent_dim, device=world.device)
    x = torch.zeros(1, *shape, device=world.device)
    generator, generator_adam = _engine_seconds(build_model(config, shape), settings, world, (z, x))
    ratio, ratio_adam = _engine_seconds(build_ratio_network(config), replace(settings, precision="fp32"), world, (z,))
    return EngineCost(generator, ratio, generator_adam, ratio_adam)


def _engine_seconds(
    module: nn.Module, settings: EngineSettings, world: World, inputs: tuple[Tensor, ...]
) -> tuple[float, float]:
    """Least seconds of a forward pass, backward pass and step, and of the step alone."""
    engine = make_engine(module, OptimizerSettings(1e-4, (0.9, 0.999)), settings, world)
    totals, steps = [], []
    for _ in range(WARM_UPDATES + ENGINE_STEPS):
        begin = _now(world)
        engine.backward(_scalar(engine(*inputs)))
        middle = _now(world)
        engine.step(1e-4)
        end = _now(world)
        totals.append(end - begin)
        steps.append(end - middle)
    return min(totals[WARM_UPDATES:]), min(steps[WARM_UPDATES:])


def _scalar(output: Any) -> Tensor:
    """The sum of all outputs of a network."""
    if isinstance(output, Tensor):
        return output.sum()
    total: Tensor = sum(_scalar(part) for part in output if part is not None)  # type: ignore[assignment]
    return total


def _now(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()


def _train(run: Run, batches: Any, num_updates: int) -> None:
    for _ in range(num_updates):
        with run.timer.part("data"):
            batch = next(batches)
        report = train_batch(run, batch)
        run.finish(batch)
        run.poll.pace(float(run.world.sum(torch.tensor(report.chain_step_s))) / run.world.size)


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0)


def process_bytes(config: RunConfig, shape: tuple[int, ...], with_deepspeed: bool) -> int:
    """The memory of interpreter and libraries on the host: that of this process after a minimal run."""
    world = World.from_environment(config.device)
    model = config.model
    narrow = {
        "generator": model.generator.model_copy(update={"width": 1}),
        "encoder": model.encoder.model_copy(update={"width": 1}),
        "ratio": model.ratio.model_copy(update={"hidden": (1,)}),
    }
    streams = config.data.num_streams
    least = share_of_run(config, _largest_divisor(streams, streams // world.size))
    least = least.model_copy(update={"model": config.model.model_copy(update=narrow), "engine": "plain"})
    if with_deepspeed and has_deepspeed():
        engine_cost(least, shape, 1, world)
    update_seconds(least, world, num_updates=1)
    return resident_bytes()


def has_deepspeed() -> bool:
    """Whether DeepSpeed is installed."""
    return importlib.util.find_spec("deepspeed") is not None
