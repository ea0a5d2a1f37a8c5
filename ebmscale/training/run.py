"""A run: all parts that are made from a configuration and a world, and their state as a checkpoint."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.data.stream import Batch, ImageStream
from ebmscale.errors import DivergenceError
from ebmscale.kernels.forms import is_for
from ebmscale.model.checkpoint import SavedCheckpoint, position_of
from ebmscale.model.noise_level import NoiseLevel
from ebmscale.model.pieces import Piece, shapes_of
from ebmscale.model.pixels import shows_images
from ebmscale.model.residuals import Residuals, measure_residuals
from ebmscale.model.saved_part import SavedPart
from ebmscale.stages.ratio_trainer import RatioTrainer
from ebmscale.storage import Storage
from ebmscale.training.engine import Engine
from ebmscale.training.guard import Guard
from ebmscale.training.loaded import LoadedCheckpoint, read_checkpoint
from ebmscale.training.metrics import MeanMeter, PartTimer
from ebmscale.training.sampling import AverageWeights, SamplingCopy
from ebmscale.training.saver import Draft, Saver
from ebmscale.training.stopping import StopPoll
from ebmscale.training.summary import Activity, RunSummary
from ebmscale.training.training_set import TrainingSet
from ebmscale.world import World


@dataclass
class Run:
    """The parts of a run in one process.

    Only its own methods change its values.

    Attributes:
        storage: of the run.
        data: the training set.
        stream: of the batches; None before the first call of `batches`.
        samples_seen: the run's clock.
        done_at: `samples_seen` at the last evidence, metrics and checkpoint.
        measured: numbers of the last evidence, by which the best checkpoints are chosen.
        residuals: of held-out images, at the last evidence.
    """

    config: RunConfig
    world: World
    storage: Storage
    data: TrainingSet
    generator: Engine
    sampling: SamplingCopy
    average: AverageWeights | None
    noise_level: NoiseLevel
    stages: RatioTrainer
    guard: Guard
    saver: Saver
    poll: StopPoll
    meter: MeanMeter
    timer: PartTimer
    stream: ImageStream | None = None
    samples_seen: int = 0
    done_at: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("evidence", "metrics", "checkpoint"), 0))
    measured: dict[str, float] = field(default_factory=dict)
    residuals: Residuals | None = None

    def due(self, what: str, every: int, last: bool = False) -> bool:
        """Whether `what` is due: a multiple of `every` samples was passed since the last time, or this is the end."""
        if last:
            return self.done_at[what] != self.samples_seen
        return self.done_at[what] // every != self.samples_seen // every

    def batches(self, start: int | None = None) -> Iterator[Batch]:
        """The batches from `samples_seen` on, which a `start` sets first. It ends the batches of an earlier call."""
        if start is not None:
            self.samples_seen = start
        if self.stream is not None:
            self.stream.close()
        self.stream = self.data.stream(self.config, self.world, self.samples_seen)
        return iter(self.stream)

    def finish(self, batch: Batch) -> None:
        """Sets the clock to the end of a batch that has been trained."""
        self.samples_seen = batch.end

    def mark(self, what: str) -> None:
        """Records that `what` (a key of `done_at`) was done at this position."""
        self.done_at[what] = self.samples_seen

    def keep_measured(self, measured: dict[str, float]) -> None:
        """Keeps the finite numbers of the evidence, by which the best checkpoints are chosen."""
        self.measured = {name: value for name, value in measured.items() if math.isfinite(value)}

    def keep_residuals(self, mean: Tensor) -> None:
        """Measures and keeps the residuals of the held-out images, whose reconstructions are `mean` (collective)."""
        self.residuals = measure_residuals(self.data.held_out, mean, self.world)

    @property
    def shows_images(self) -> bool:
        """Whether what the generator makes are pictures."""
        return shows_images(self.config, self.data.manifest.image_shape)

    def summary(self) -> RunSummary:
        """What a view shows of the run when it is opened."""
        return RunSummary(
            url=self.storage.url,
            samples_seen=self.samples_seen,
            max_samples=self.config.train.max_samples,
            data=self.data.manifest.name,
            counts=self.data.manifest.counts(),
            engine=type(self.generator).__name__,
            precision=self.config.precision,
            rank=self.world.rank,
            num_workers=self.world.size,
            device=self.world.device,
        )

    def activity(self) -> Activity:
        """What the run is doing now. Other threads may call it."""
        return Activity(self.samples_seen, self.timer.current)

    def close(self) -> None:
        """Ends the threads that read ahead and that write. A checkpoint that is not complete by then is abandoned."""
        if self.stream is not None:
            self.stream.close()
        self.saver.close()

    @property
    def parts(self) -> dict[str, SavedPart]:
        """What a checkpoint keeps as tensors, by the stem of its files."""
        parts: dict[str, SavedPart] = {"generator": self.generator, **self.stages.parts}
        return parts if self.average is None else parts | {"average": self.average}

    def parts_at(self, position: int) -> dict[str, SavedPart]:
        """What is read of a checkpoint at `samples_seen`.

        Before the ratios begin these are the networks and the buffer of posteriors alone: all else is as at the start,
        and the run with which this one began may have had another prior (`run.start_from`).
        """
        if self._has_ratios_at(position):
            return self.parts
        networks = {name: part for name, part in self.parts.items() if name in ("generator", "average")}
        return networks | {"chains": self.stages.latents.only_buffer}

    def _has_ratios_at(self, position: int) -> bool:
        return position > self.config.prior_begins

    def share(self) -> dict[str, list[Piece]]:
        """This rank's share of the parts, as views."""
        return {stem: part.share() for stem, part in self.parts.items()}

    @property
    def generator_trains(self) -> bool:
        """Whether the generator is still training at `samples_seen`."""
        return self.samples_seen < self.config.generator_stops

    @property
    def is_done(self) -> bool:
        """Whether the budget is used, or all networks have ended their training before that."""
        rests = (
            self.samples_seen > 0
            and self.stages.state.finished
            and not self.stages.latents.fits_base
            and not self.generator_trains
        )
        return rests or self.samples_seen >= self.config.train.max_samples

    def save(self) -> None:
        """Copies the state now and writes a checkpoint in the background (collective)."""
        self.mark("checkpoint")
        about = {
            "samples_seen": self.samples_seen,
            "stage": self.stages.state.stage,
            "good": self.guard.state.bad_in_row == 0,
            "world_size": self.world.size,
            "metrics": dict(self.measured),
            "tensors": {
                stem: {name: list(size) for name, size in part.shapes().items()} for stem, part in self.parts.items()
            },
        }
        frozen = self.stages.frozen
        ratios = [frozen.stage_weights(k + 1) for k in range(frozen.num_stages)]
        self.saver.begin(self.samples_seen, self.share(), Draft(about, self._values(), ratios))

    def save_and_wait(self, out_of_time: Callable[[], bool] = lambda: False) -> None:
        """Waits until the current state is saved, after any checkpoint that is being written (collective).

        Args:
            out_of_time: whether the time for writing is over.

        Raises:
            StorageError: a checkpoint could not be written, or not in time.
        """
        self.saver.finish(out_of_time)
        if self.saver.last_saved != self.samples_seen:
            self.save()
            self.saver.finish(out_of_time)

    def before_manifests(self, action: Callable[[], None]) -> None:
        """Makes rank 0 call `action` before it completes a checkpoint."""
        self.saver.before_manifest = action

    def _values(self) -> dict[str, dict[str, Any]]:
        """The plain values of a checkpoint by document, as `RunState` and `ClockState` read them (collective)."""
        state = {
            "samples_seen": self.samples_seen,
            "done_at": self.done_at,
            "world_size": self.world.size,
            "image_shape": self.data.manifest.image_shape,
            "stages": self.stages.values(),
            "guard": self.guard.values(),
            "measured": self.measured,
            "residuals": asdict(self.residuals) if self.residuals is not None else None,
            "form": self.sampling.form,
            "mean_square": self.noise_level.mean_square,
            "meters": self.world.gather_objects(self.meter.values()),
        }
        return {"state": json.loads(json.dumps(state)), "clock": self.timer.values()}

    def restore(self, only_good: bool = False) -> SavedCheckpoint | None:
        """Restores the newest valid checkpoint. Any world and any engine may have written it (collective).

        Args:
            only_good: whether to skip checkpoints that were saved right after a skipped update.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            StorageError: the storage cannot be read.
            ConfigError: the checkpoint is of another network.
        """
        store, network = self.saver.store, self.stages.frozen.network
        for name in self.world.broadcast(store.candidates() if self.world.is_first else None):
            parts = self.parts_at(position_of(name))
            loaded = read_checkpoint(store, name, parts, shapes_of(network.state_dict()), self.world)
            if loaded is None or (only_good and not loaded.saved.manifest.good):
                continue
            self._take(loaded)
            return loaded.saved
        return None

    def _take(self, loaded: LoadedCheckpoint) -> None:
        saved, state = loaded.saved, loaded.state
        has_ratios, parts = self._has_ratios_at(saved.samples_seen), self.parts_at(saved.samples_seen)
        if has_ratios:
            self.stages.load_values(state.stages.model_dump())
        for stem, tensors in loaded.tensors.items():
            parts[stem].restore(tensors)
        if has_ratios:
            self.stages.take_frozen(loaded.ratios)
        self.guard.load_values(asdict(state.guard))
        if len(state.meters) == self.world.size:
            self.meter.load_values(state.meters[self.world.rank])
        self.timer.load_values(loaded.clock.model_dump())
        self.measured, self.done_at = dict(state.measured), state.done_at.model_dump()
        if saved.samples_seen == self.config.prior_begins:  # here the evidence is that of a ratio
            self.done_at["evidence"] = min(self.done_at["evidence"], saved.samples_seen - self.config.train.batch_size)
        self.residuals = state.residuals
        self.noise_level.restore(state.mean_square)
        self.samples_seen = saved.samples_seen
        self.saver.last_saved = saved.samples_seen
        form = state.form
        if self.config.posterior.kernel == "auto" and form is not None and is_for(form, self.world.device):
            self.sampling.use(form)  # the form with which the run began, even if another is faster now
        self.sampling.refresh()

    def roll_back(self, reason: str) -> int:
        """Returns to the weights of the last good checkpoint, with lower rates, and saves (collective).

        `samples_seen` keeps its value. So no sample is trained on twice, and metrics have one line for each position.

        Args:
            reason: what happened, for the message.

        Returns:
            `samples_seen` of the checkpoint.

        Raises:
            DivergenceError: the run was rolled back too often, or there is no good checkpoint.
        """
        self.saver.finish()
        self.guard.check_run_rollbacks(reason)
        now, done_at, guard, meter = self.samples_seen, self.done_at, self.guard.state, self.meter.values()
        saved = self.restore(only_good=True)
        if saved is None:
            raise DivergenceError(
                f"Training diverged: {reason}, and there is no checkpoint to go back to; lower train.generator.rate, "
                "train.ratio.rate or the chain's step_size."
            )
        before = self.guard.state
        self.guard.state = guard
        self.guard.roll_back(before, now - saved.samples_seen)
        if self._has_ratios_at(saved.samples_seen):
            self.stages.shift(now - saved.samples_seen)
        self.samples_seen, self.done_at = now, done_at
        self.meter.load_values(meter)
        self.save()
        return saved.samples_seen

    def generator_rate(self) -> float:
        """The generator's learning rate now."""
        progress = min(self.samples_seen / self.config.generator_stops, 1.0)
        return self.config.train.generator.rate_at(progress) * self.guard.state.rate_scale
