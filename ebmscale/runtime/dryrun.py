"""A dry run: one update of every kind, one save and one load, and from them what the whole run will need."""

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from ebmscale.config import RunConfig
from ebmscale.errors import EbmscaleError
from ebmscale.models import count_parameters
from ebmscale.storage import Storage
from ebmscale.training.guard import StopSignal
from ebmscale.training.loop import take_evidence, train_batch
from ebmscale.training.opening import open_run
from ebmscale.training.run import Run, run_storage
from ebmscale.world import World

WARM_BATCHES, TIMED_BATCHES = 3, 8


class Seconds(NamedTuple):
    """Time on the clock, and of this process on all cores."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Attributes:
        num_batches: updates in all.
        first_batch_s: seconds of an update at the beginning, the prior being p_0.
        last_batch_s: seconds of an update at the end, in the last stage, with all prior chains.
        evidence_s: seconds of one measurement of evidence in the last stage.
        train_s: seconds of the whole run at most.
        cpu_s: seconds of processor time of this process over the whole run, its stages coming one after another.
        memory_bytes: peak memory of this process, host or CUDA device.
        checkpoint_bytes: size of one checkpoint.
        free_bytes: free space of the run's storage; None if it is not a local folder.
        num_parameters: of generator with encoder, and of one ratio network.
    """

    num_batches: int
    first_batch_s: float
    last_batch_s: float
    evidence_s: float
    train_s: float
    cpu_s: float
    memory_bytes: int
    checkpoint_bytes: int
    free_bytes: int | None
    num_parameters: tuple[int, int]


def dry_run(config: RunConfig, world: World) -> Forecast:
    """Tries everything a run does, in a temporary folder; the run's own storage is only probed.

    Raises:
        EbmscaleError: what the run itself would raise.
    """
    storage = run_storage(config)
    storage.probe()
    with tempfile.TemporaryDirectory(prefix="ebmscale-dry-run-") as folder:
        trial = config.model_copy(update={"storage": config.storage.model_copy(update={"url": folder})})
        run = open_run(trial, world, StopSignal())
        try:
            return _measure(run, storage)
        finally:
            run.close()


def _measure(run: Run, storage: Storage) -> Forecast:
    config = run.config
    spans = _spans(run)
    first = [_batch_seconds(run, begin) for begin, _ in spans]
    first_evidence = _seconds(lambda: take_evidence(run), repeats=2)
    run.save()
    run.saver.finish()
    saved = run.restore()
    if saved is None:
        raise EbmscaleError("The dry run's checkpoint could not be read back; check the disk and report this.")
    for _ in range(0 if config.num_live else config.most_stages - 1):
        run.stages.prior = run.stages.prior.append(run.stages.engine.full_weights())
    last = [
        _batch_seconds(run, begin) if begin >= config.stages.start_samples else seconds
        for (begin, _), seconds in zip(spans, first, strict=True)
    ]
    new_stage = Seconds(0.0, 0.0)
    if not config.num_live and config.most_stages:
        new_stage = _seconds(lambda: run.stages.equilibrated(run.stages.prior, run.samples_seen), repeats=1)
    last_evidence = _seconds(lambda: take_evidence(run), repeats=2)
    shares = [(end - begin) / config.train.max_samples for begin, end in spans]
    ages = [_age(config, begin, end) for begin, end in spans]
    batch_cpu_s = sum(
        share * (one.cpu_s + age * (other.cpu_s - one.cpu_s))
        for share, age, one, other in zip(shares, ages, first, last, strict=True)
    )
    age = sum(share * one for share, one in zip(shares, ages, strict=True))
    evidence_cpu_s = first_evidence.cpu_s + age * (last_evidence.cpu_s - first_evidence.cpu_s)
    longest_s = sum(
        share * max(one.wall_s, other.wall_s) for share, one, other in zip(shares, first, last, strict=True)
    )
    num_batches = -(-config.train.max_samples // config.train.batch_size)
    num_evidence = config.train.max_samples // config.stages.evidence_every
    local = storage.local_path()
    return Forecast(
        num_batches=num_batches,
        first_batch_s=first[0].wall_s,
        last_batch_s=last[-1].wall_s,
        evidence_s=last_evidence.wall_s,
        cpu_s=num_batches * batch_cpu_s + num_evidence * evidence_cpu_s + config.most_stages * new_stage.cpu_s / 2,
        train_s=num_batches * longest_s + num_evidence * last_evidence.wall_s + config.most_stages * new_stage.wall_s,
        memory_bytes=_peak_memory(run.world),
        checkpoint_bytes=saved.num_bytes,
        free_bytes=shutil.disk_usage(local).free if local is not None else None,
        num_parameters=(count_parameters(run.sampling.model), count_parameters(run.stages.prior.network)),
    )


def _spans(run: Run) -> list[tuple[int, int]]:
    """Where an update is the same work, as `samples_seen` at begin and end.

    The generator stops, the ratios start, or chains go on where they ended an epoch before.
    """
    config, end = run.config, run.config.train.max_samples
    changes = [config.stages.start_samples, config.generator_stops]
    if run.memory is not None:
        changes.append(run.num_samples)
    edges = {0, end} | {at for at in changes if at < end}
    return list(pairwise(sorted(edges)))


def _age(config: RunConfig, begin: int, end: int) -> float:
    """How far updates from `begin` to `end` are from the first stage's cost to the last's, on average.

    It is taken that every stage lasts its longest; the last one, whose prior has most ratios, lasts to the run's end.
    """
    num_later, length = config.most_stages - 1, config.stages.max_samples
    if config.num_live or num_later < 1:
        return 1.0
    times = range(begin, end, config.train.batch_size)
    stages = [min(max(at - config.stages.start_samples, 0) // length, num_later) for at in times]
    return sum(stages) / len(stages) / num_later


def _batch_seconds(run: Run, begin: int) -> Seconds:
    """Seconds of a batch from `begin` samples on, under the run's present prior."""
    run.samples_seen = begin
    if run.memory is not None:
        run.memory.known.fill_(begin >= run.num_samples)
    batches = run.batches()

    def update() -> None:
        batch = next(batches)
        train_batch(run, batch)
        run.samples_seen = batch.end

    for _ in range(WARM_BATCHES):
        update()
    return _seconds(update)


def _seconds(action: Callable[[], object], repeats: int = TIMED_BATCHES) -> Seconds:
    """Mean seconds of an action on the clock; of processor time the least, which others on the machine raise least."""
    begin, cpu = time.perf_counter(), []
    for _ in range(repeats):
        cpu_begin = time.process_time()
        action()
        cpu.append(time.process_time() - cpu_begin)
    return Seconds((time.perf_counter() - begin) / repeats, min(cpu))


def _peak_memory(world: World) -> int:
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
