"""Forecasts a run on many workers, from measurements of one worker here and a description of the network.

The global batch is fixed. With more workers each worker has fewer rows, but sends as many bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError
from ebmscale.forecast.footprint import FP32, EngineChoice
from ebmscale.forecast.memory import Memory, Share, forecast_memory
from ebmscale.forecast.set_start import SetStart
from ebmscale.forecast.timing import UpdateTimes, measure_updates, process_bytes
from ebmscale.model.build import build_on_meta
from ebmscale.model.updates import updates_per_batch
from ebmscale.storage import open_storage
from ebmscale.training.precision import least_bf16_gain, with_precision
from ebmscale.training.run_data import load_or_pack, shape_of_samples, with_latents_of
from ebmscale.world import World

LIVE_PARAMETERS = 1_000_000_000
"""ZeRO 3 keeps at most this number of parameters gathered from the forward to the backward pass (its default)."""
COLLECTIVES = (1, 3, 3, 2)
"""Collectives of an engine's step by ZeRO stage, counted in real steps.

bf16 adds a check for overflow to stages 1 and 2, and ZeRO 3 gathers every tensor once."""
EVIDENCE_BYTES = 8
"""Bytes of a gathered log ratio, including its serialisation."""


@dataclass(frozen=True)
class Network:
    """The network between workers: the bandwidth of each worker in Gbit/s, and the latency of a message in us."""

    bandwidth_gbit: float = 10.0
    latency_us: float = 50.0

    def seconds(self, traffic: "Traffic", size: int) -> float:
        """Seconds of messages without overlapping computation."""
        rounds = math.ceil(math.log2(size)) if size > 1 else 0
        return (
            traffic.num_bytes * 8 / (self.bandwidth_gbit * 1e9)
            + traffic.num_collectives * rounds * self.latency_us / 1e6
        )


@dataclass(frozen=True)
class Traffic:
    """What a worker sends in an update.

    Attributes:
        parts: bytes by name.
        num_collectives: collective operations.
    """

    parts: Mapping[str, float]
    num_collectives: float

    @property
    def num_bytes(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class WorkersForecast:
    """A run on `size` workers with one engine.

    Attributes:
        size: workers.
        engine: plain or a ZeRO stage.
        share: of the worker with the largest share.
        memory: on that worker, without the `process_bytes` of interpreter and libraries on the host.
        traffic: of a worker in an update.
        compute_s: seconds of an update without messages; None without a measurement.
        network_s: seconds of its messages.
        efficiency: speed-up over one worker with the plain engine, divided by the number of workers.
        samples_per_s: of the run.
    """

    size: int
    engine: EngineChoice
    share: Share
    memory: Memory
    traffic: Traffic
    compute_s: float | None
    network_s: float
    efficiency: float | None
    samples_per_s: float | None

    @property
    def update_s(self) -> float | None:
        """Seconds of an update."""
        return None if self.compute_s is None else self.compute_s + self.network_s


@dataclass(frozen=True)
class Plan:
    """Forecasts for every number of workers and every engine.

    Attributes:
        forecasts: of the possible numbers of workers.
        refused: a sentence for every number of workers that is not possible.
        assumptions: of the forecasts, as sentences.
        process_bytes: interpreter and libraries of a worker, on the host.
        single_s: seconds of an update on one worker with the plain engine, measured.
        start: what a worker reads of the set before its first batch.
    """

    forecasts: list[WorkersForecast]
    refused: list[str]
    assumptions: list[str]
    process_bytes: int
    single_s: float | None = None
    start: SetStart | None = None


@dataclass(frozen=True)
class PlannedRun:
    """The input of a forecast: a run, its images, and a network."""

    config: RunConfig
    shape: tuple[int, ...]
    num_samples: int
    network: Network = field(default_factory=Network)
    on_cuda: bool = False


def plan(config: RunConfig, workers: Sequence[int], network: Network | None = None, measuring: bool = True) -> Plan:
    """Forecasts a run on each of these numbers of workers.

    Args:
        config: the run; its data set is packed if it is absent and the configuration describes its source.
        workers: numbers of workers.
        network: between them.
        measuring: whether to time updates here; otherwise the plan has only memory and messages.

    Raises:
        ConfigError: none of the numbers of workers is possible.
        DataError: there is no data set.
    """
    config = with_precision(config, least_bf16_gain(config, World.from_environment(config.device)))
    refused = [sentence for size in workers if (sentence := impossible_reason(config, size))]
    sizes = [size for size in workers if not impossible_reason(config, size)]
    if not sizes:
        raise ConfigError(refused[0] if refused else "No number of workers was given, such as --workers 8,64.")
    data = open_storage(config.data)
    manifest = load_or_pack(config, data)
    config = with_latents_of(config, manifest)
    shape = shape_of_samples(data, manifest, config)
    planned = PlannedRun(config, shape, manifest.num_samples, network or Network(), on_cuda(config))
    choices = {size: _engines(planned, size) for size in sizes}
    stages = list(dict.fromkeys(engine.zero_stage for engines in choices.values() for engine in engines))
    process = process_bytes(config, shape, with_deepspeed=stages != [None])
    measured = measure_updates(config, shape, max(sizes), stages) if measuring else None
    forecasts = [forecast(planned, engine, size, measured) for size in sizes for engine in choices[size]]
    single = None if measured is None else _compute_seconds(planned, EngineChoice(None), Share.of(config, 1), measured)
    start = SetStart.of(config, manifest, Share.of(config, min(sizes)).num_streams)
    return Plan(forecasts, refused, assumptions(planned, measured), process, single, start)


def impossible_reason(config: RunConfig, size: int) -> str | None:
    """A sentence on why a run cannot have this number of workers; None if it can."""
    if size < 1:
        return f"{size} workers cannot train; give at least 1."
    for key, most in {
        "data.num_streams": config.data.num_streams,
        "train.batch_size": config.train.batch_size,
        "stages.batch_size": config.stages.batch_size,
    }.items():
        if size > most:
            return (
                f"{size:,} workers cannot share {key}={most:,}: the global batch is fixed and every worker takes at "
                f"least one row and one stream of it, so use at most {most:,} workers or raise {key}."
            )
    return None


def forecast(planned: PlannedRun, engine: EngineChoice, size: int, measured: UpdateTimes | None) -> WorkersForecast:
    """Forecasts one number of workers with one engine."""
    config = planned.config
    share = Share.of(config, size)
    memory = forecast_memory(config, planned.shape, planned.num_samples, engine, size, planned.on_cuda)
    traffic = forecast_traffic(config, planned.shape, engine, size)
    network_s = planned.network.seconds(traffic, size)
    compute_s = efficiency = samples_per_s = None
    if measured is not None:
        compute_s = _compute_seconds(planned, engine, share, measured)
        single_s = _compute_seconds(planned, EngineChoice(None), Share.of(config, 1), measured)
        efficiency = single_s / (size * (compute_s + network_s))
        samples_per_s = config.train.batch_size / (compute_s + network_s)
    return WorkersForecast(size, engine, share, memory, traffic, compute_s, network_s, efficiency, samples_per_s)


def forecast_traffic(config: RunConfig, shape: tuple[int, ...], engine: EngineChoice, size: int) -> Traffic:
    """What a worker sends in an update of the generator and its ratio updates, with a share of the evidence."""
    if size == 1:
        return Traffic({}, 0)
    half = 2 if config.precision == "bf16" else FP32
    ring = (size - 1) / size  # the part that a worker sends in an all-gather or a reduce-scatter
    stage = engine.zero_stage or 0
    steps = (1, updates_per_batch(config, shape) if config.most_stages else 0)
    halves = (half, FP32)  # a ratio network always trains in fp32
    parts = {"gradients": 0.0, "weights": 0.0, "sampling copy": 0.0}
    num_collectives = 2.0  # one checks that every rank has its batch, one whether to stop
    networks = build_on_meta(config, shape)
    copies = (1, max(config.num_live, 1))
    for module, num_copies, num_steps, width in zip(networks, copies, steps, halves, strict=True):
        counts = [parameter.numel() for parameter in module.parameters()] * num_copies
        parts["gradients"] += num_steps * ring * FP32 * sum(counts) * (1 if stage == 3 else 2)
        if stage:
            parts["weights"] += num_steps * ring * width * sum(counts) * (2 if sum(counts) > LIVE_PARAMETERS else 1)
        checks = 1 if stage in (1, 2) and width != FP32 else 0
        num_collectives += num_steps * (COLLECTIVES[stage] + checks + (len(counts) if stage == 3 else 0))
        if stage == 3 and not parts["sampling copy"]:
            parts["sampling copy"] = ring * width * sum(counts)
            num_collectives += 1
    between = config.stages.evidence_every / config.train.batch_size
    parts["evidence"] = 2 * config.stages.evidence_samples * EVIDENCE_BYTES * ring / between
    return Traffic(parts, num_collectives + 5 / between)


def _compute_seconds(planned: PlannedRun, engine: EngineChoice, share: Share, measured: UpdateTimes) -> float:
    """Seconds of an update of this share without messages, with a share of the evidence."""
    config = planned.config
    between = max(config.stages.evidence_every / config.train.batch_size, 1.0)
    seconds = sum(
        timing.at(share.fraction) / (between if part == "evidence" else 1.0) for part, timing in measured.parts.items()
    )
    cost, plain = measured.engines.get(engine.zero_stage), measured.engines[None]
    if cost is None:
        return seconds
    updates = updates_per_batch(config, planned.shape) if config.most_stages else 0
    extra = (cost.generator - plain.generator) + updates * (cost.ratio - plain.ratio)
    if engine.zero_stage:
        spared = 1 - 1 / share.size
        extra -= spared * (plain.generator_adam + updates * plain.ratio_adam)
    return max(seconds + extra, 0.0)


def assumptions(planned: PlannedRun, measured: UpdateTimes | None) -> list[str]:
    """The assumptions of a plan, as sentences."""
    config, network = planned.config, planned.network
    lines = [
        f"The global batch is {config.train.batch_size:,} rows in {config.data.num_streams:,} streams for any number "
        "of workers; a line describes the worker with the largest share, in the last stage.",
        f"Every worker sends {network.bandwidth_gbit:g} Gbit/s and a message takes {network.latency_us:g} us "
        "(--bandwidth-gbit, --latency-us); a collective sends as many bytes as a ring, in log2(workers) rounds, and "
        "does not overlap with computation.",
        "All workers are equally fast; the storage is fast enough for reading and for checkpoints.",
        "Checkpoints are written in the background from a copy of the worker's share of the state, and cost no time.",
    ]
    if measured is None:
        return [*lines, "No time was measured (--no-measure), so the plan has no times."]
    lines.append(
        f"Times are measured here on one worker with {measured.num_threads} thread(s), for the whole batch and for "
        f"{measured.fraction:.3g} of it, and are linear between them; other workers are as fast as this one."
    )
    if set(measured.engines) == {None} and config.engine != "plain":
        lines.append("DeepSpeed is not installed here, so its own overhead is left out.")
    else:
        lines.append("The overhead of DeepSpeed's engines is measured here on one row.")
    return lines


def _engines(planned: PlannedRun, size: int) -> list[EngineChoice]:
    """The engines that the configuration allows with this number of workers."""
    kind = planned.config.engine
    if kind == "plain" or (kind == "auto" and size == 1 and not planned.on_cuda):
        return [EngineChoice(None)]
    return [EngineChoice(stage) for stage in range(4)]


def on_cuda(config: RunConfig) -> bool:
    """Whether the run uses a CUDA device here."""
    return config.device != "cpu" and torch.cuda.is_available()
