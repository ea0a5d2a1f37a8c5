"""A dry run: one update of every kind, one save and one load. From these it forecasts what the whole run needs."""

import math
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError, EbmscaleError
from ebmscale.forecast.process_memory import peak_bytes
from ebmscale.forecast.rehearsal import go_to_last_stage, go_to_stage, rehearsal, try_base, try_freeze
from ebmscale.model.run_folder import run_storage
from ebmscale.networks import count_parameters
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.storage import Storage
from ebmscale.storage_probe import probe
from ebmscale.terminal import duration
from ebmscale.training.measurement import take_evidence
from ebmscale.training.restore import restore
from ebmscale.training.run import Run
from ebmscale.training.update import train_batch
from ebmscale.world import World

WARM_BATCHES, TIMED_BATCHES = 3, 8
SLOW_S = 2.0  # of a slow update, of which only one is timed


class Seconds(NamedTuple):
    """Wall time, and processor time of this process on all cores."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Costs:
    """Measured processor seconds of the parts of a run, and the total for a run of any length.

    Attributes:
        config: the run.
        begins: `samples_seen` at the start of each span in which updates do the same work; the first is 0.
        first: seconds of an update in each span under p_0.
        last: seconds of an update in each span in the last stage.
        first_evidence: seconds of a measurement of evidence under p_0.
        last_evidence: seconds of one in the last stage.
        freeze: seconds of a freeze for each ratio that its particles pass. A freeze finds a ratio's strength and brings
            particles along.
        base: seconds to fit the base to the posteriors, once.
    """

    config: RunConfig
    begins: tuple[int, ...]
    first: tuple[float, ...]
    last: tuple[float, ...]
    first_evidence: float
    last_evidence: float
    freeze: float
    base: float = 0.0

    def cpu_s(self, max_samples: int) -> float:
        """Seconds of a run of `max_samples` whose stages have their greatest length; a short run has fewer stages."""
        config, stages = self.config, self.config.stages
        seconds = age = 0.0
        spans = pairwise([*(begin for begin in self.begins if begin < max_samples), max_samples])
        for (begin, end), one, other in zip(spans, self.first, self.last, strict=False):  # a short run has fewer spans
            of_span = _age(config, begin, end)
            seconds += (end - begin) / config.train.batch_size * (one + of_span * (other - one))
            age += (end - begin) / max_samples * of_span
        evidence = self.first_evidence + age * (self.last_evidence - self.first_evidence)
        seconds += max_samples // stages.evidence_every * evidence
        if max_samples > stages.start_samples:
            seconds += self.base
        if config.num_live or not config.most_stages:
            return seconds
        num_begun = min(-(-max(max_samples - stages.start_samples, 0) // stages.max_samples), config.most_stages)
        return seconds + self.freezes(num_begun)

    def freezes(self, num_stages: int) -> float:
        """Seconds of all freezes of a run with that many stages."""
        return self.freeze * _ratios_passed(num_stages)

    def samples_within(self, cpu_s: float) -> int:
        """The greatest number of samples, in whole batches and at least one, within a budget of processor seconds."""
        batch = self.config.train.batch_size
        most = 1
        while self.cpu_s(2 * most * batch) <= cpu_s:
            most *= 2
        return batch * bisect_right(range(1, 2 * most), cpu_s, key=lambda batches: self.cpu_s(batches * batch)) or batch


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Attributes:
        num_batches: updates in all.
        first_batch_s: seconds of an update at the beginning, under p_0.
        last_batch_s: seconds of an update at the end, in the last stage, with all prior chains.
        evidence_s: seconds of one measurement of evidence in the last stage.
        train_s: upper bound on the seconds of the whole run.
        costs: processor seconds of this process.
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
    costs: Costs
    memory_bytes: int
    checkpoint_bytes: int
    free_bytes: int | None
    num_parameters: tuple[int, int]


def dry_run(config: RunConfig, world: World, most_s: float = math.inf) -> Forecast:
    """Tries every operation of a run in a temporary folder. In the run's own storage it only checks the access.

    Args:
        config: of the run.
        world: rank and size of this process.
        most_s: seconds. If the whole run would take longer, the dry run ends with an error after its first update.

    Raises:
        ConfigError: the machine is too slow.
        EbmscaleError: any error that the run itself would raise.
    """
    storage = run_storage(config)
    probe(storage, tidy=True)
    with rehearsal(config, world) as run:
        _check_speed(run, most_s)
        return _measure(run, storage)


def _check_speed(run: Run, most_s: float) -> None:
    """Makes one update, and refuses a run whose updates would take more than `most_s` seconds in all."""
    if math.isinf(most_s):
        return
    one_s = _seconds(_updates(run, 0), repeats=1).wall_s
    num_batches = -(-run.config.train.max_samples // run.config.train.batch_size)
    if most_s < one_s * num_batches < 2 * most_s:  # the first update also loads libraries
        one_s = _seconds(_updates(run, 0), repeats=1).wall_s
    if one_s * num_batches > most_s:
        raise ConfigError(
            f"This machine is too slow for this run: an update took {one_s:.1f} s, and {num_batches:,} of them take "
            f"{duration(one_s * num_batches)} or more; use a GPU, lower model.generator.width or train.max_samples, or "
            "write a configuration for this machine with `ebmscale init DATA`."
        )


def _measure(run: Run, storage: Storage) -> Forecast:
    config = run.config
    spans = _spans(run)
    base = Seconds(0.0, 0.0)
    if config.prior.base == "moments":
        base = _seconds(partial(try_base, run.stages, config.stages.start_samples), repeats=1)
    first = [_batch_seconds(run, begin) for begin, _ in spans]
    first_evidence = _seconds(lambda: take_evidence(run), repeats=2)
    run.save_and_wait()
    saved = restore(run)
    if saved is None:
        raise EbmscaleError("The dry run's checkpoint could not be read back; check the disk and report this.")
    go_to_last_stage(run)
    last = [
        _batch_seconds(run, begin) if begin >= config.stages.start_samples else seconds
        for (begin, _), seconds in zip(spans, first, strict=True)
    ]
    last_evidence = _seconds(lambda: take_evidence(run), repeats=2)
    freeze = Seconds(0.0, 0.0)
    if isinstance(run.stages, StageTrainer) and config.most_stages:
        freeze = _freeze_seconds(run.stages, config.most_stages, run.samples_seen)
    shares = [(end - begin) / config.train.max_samples for begin, end in spans]
    costs = Costs(
        config,
        tuple(begin for begin, _ in spans),
        tuple(one.cpu_s for one in first),
        tuple(one.cpu_s for one in last),
        *(first_evidence.cpu_s, last_evidence.cpu_s, freeze.cpu_s, base.cpu_s),
    )
    longest_s = sum(
        share * max(one.wall_s, other.wall_s) for share, one, other in zip(shares, first, last, strict=True)
    )
    num_batches = -(-config.train.max_samples // config.train.batch_size)
    num_evidence = config.train.max_samples // config.stages.evidence_every
    return Forecast(
        num_batches=num_batches,
        first_batch_s=first[0].wall_s,
        last_batch_s=last[-1].wall_s,
        evidence_s=last_evidence.wall_s,
        costs=costs,
        train_s=num_batches * longest_s
        + num_evidence * last_evidence.wall_s
        + freeze.wall_s * _ratios_passed(config.most_stages)
        + base.wall_s,
        memory_bytes=_peak_memory(run.world),
        checkpoint_bytes=saved.num_bytes,
        free_bytes=_free_bytes(storage.local_path()),
        num_parameters=(count_parameters(run.sampling.model), count_parameters(run.stages.prior.network)),
    )


def _freeze_seconds(trainer: StageTrainer, most_stages: int, position: int) -> Seconds:
    """Of a freeze, for each ratio that its particles pass. It is timed where that is one ratio or two."""
    num_before = min(1, most_stages - 1)
    go_to_stage(trainer, num_before)
    found = _seconds(partial(try_freeze, trainer, position), repeats=1)
    return Seconds(*(one / (num_before + 1) for one in found))


def _ratios_passed(num_stages: int) -> int:
    """1 + 2 + ... + K: at the freeze of stage k the particles pass k ratios."""
    return num_stages * (num_stages + 1) // 2


def _free_bytes(folder: Path | None) -> int | None:
    """The free space where a folder is or will be made; None if it is not on this machine."""
    if folder is None:
        return None
    return shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free


def _spans(run: Run) -> list[tuple[int, int]]:
    """The spans in which all updates do the same work, as `samples_seen` at their beginnings and ends.

    A span ends where the ratios start or the generator stops.
    """
    config, end = run.config, run.config.train.max_samples
    changes = [config.stages.start_samples, config.generator_stops]
    edges = {0, end} | {at for at in changes if at < end}
    return list(pairwise(sorted(edges)))


def _age(config: RunConfig, begin: int, end: int) -> float:
    """The mean cost of updates from `begin` to `end`, between that of the first stage (0) and that of the last (1).

    It assumes that every stage has its greatest length, and that the last stage, whose prior has the most ratios,
    lasts to the end of the run.
    """
    num_later, length = config.most_stages - 1, config.stages.max_samples
    if config.num_live or num_later < 1:
        return 1.0
    times = range(begin, end, config.train.batch_size)
    stages = [min(max(at - config.stages.start_samples, 0) // length, num_later) for at in times]
    return sum(stages) / len(stages) / num_later


def _batch_seconds(run: Run, begin: int) -> Seconds:
    """Mean seconds of updates after `begin` samples, under the current prior. Of slow updates only one is timed."""
    update = _updates(run, begin)
    if _seconds(update, repeats=1).wall_s > SLOW_S:
        return _seconds(update, repeats=1)
    for _ in range(WARM_BATCHES - 1):
        update()
    return _seconds(update)


def _updates(run: Run, begin: int) -> Callable[[], None]:
    """A function that makes the next update after `begin` samples."""
    batches = run.batches(begin)

    def update() -> None:
        batch = next(batches)
        train_batch(run, batch)
        run.finish(batch)

    return update


def _seconds(action: Callable[[], object], repeats: int = TIMED_BATCHES) -> Seconds:
    """Mean wall seconds of an action, and its least processor seconds. Other processes affect the least value least."""
    begin, cpu = time.perf_counter(), []
    for _ in range(repeats):
        cpu_begin = time.process_time()
        action()
        cpu.append(time.process_time() - cpu_begin)
    return Seconds((time.perf_counter() - begin) / repeats, min(cpu))


def _peak_memory(world: World) -> int:
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return peak_bytes()
