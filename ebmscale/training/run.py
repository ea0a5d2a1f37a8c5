"""A run: all parts that are made from a configuration and a world, and their state as a checkpoint."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.data.stream import Batch, ImageStream
from ebmscale.model.noise_level import NoiseLevel
from ebmscale.model.pieces import Piece
from ebmscale.model.pixels import shows_images
from ebmscale.model.residuals import Residuals, measure_residuals
from ebmscale.model.run_folder import model_of
from ebmscale.model.saved_part import SavedPart
from ebmscale.stages.ratio_trainer import RatioTrainer
from ebmscale.storage import Storage
from ebmscale.training.engine import Engine
from ebmscale.training.guard import Guard
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

    Only its own methods and `training.restore` change its values.

    Attributes:
        storage: of the run.
        data: the training set.
        stream: of the batches; None before the first call of `batches`.
        samples_seen: the run's clock.
        done_at: `samples_seen` at the last evidence, metrics and checkpoint.
        measured: numbers of the last evidence, by which the best checkpoints are chosen.
        residuals: of held-out images, at the last evidence.
        borrowed: the name of the checkpoint of another run with which this one starts; None if it starts alone.
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
    borrowed: str | None = None

    def due(self, what: str, every: int, last: bool = False) -> bool:
        """Whether `what` is due: a multiple of `every` samples was passed since the last time, or this is the end."""
        if last:
            return self.done_at[what] != self.samples_seen
        return self.done_at[what] // every != self.samples_seen // every

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether to save now: at every interval, and where the prior begins on a generator that has stopped."""
        return self._prior_begins_now or self.due("checkpoint", self.config.checkpoint.every_samples)

    @property
    def _prior_begins_now(self) -> bool:
        """Whether the prior begins here on a generator that has stopped, and no save was begun here."""
        begins = self.config.has_two_stages and self.samples_seen == self.config.prior_begins
        return begins and self.done_at["checkpoint"] != self.samples_seen

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

    @property
    def first_parts(self) -> dict[str, SavedPart]:
        """What was trained before the prior began to be learned: the networks, and the buffer of posteriors."""
        networks = {name: part for name, part in self.parts.items() if name in ("generator", "average")}
        return networks | {"chains": self.stages.latents.only_buffer}

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
            "model": model_of(self.config),
            "tensors": {
                stem: {name: list(size) for name, size in part.shapes().items()} for stem, part in self.parts.items()
            },
        }
        frozen = self.stages.frozen
        ratios = [frozen.stage_tensors(k + 1) for k in range(frozen.num_stages)]
        self.saver.begin(self.samples_seen, self.share(), Draft(about, self._values(), ratios))

    def save_if_idle(self, out_of_time: Callable[[], bool]) -> None:
        """Saves in the background, unless an earlier checkpoint is still being written (collective).

        Where the prior begins it waits for the earlier one: no later batch could save this state.

        Args:
            out_of_time: whether the time for writing is over.

        Raises:
            StorageError: the earlier checkpoint could not be written, or not in time.
        """
        if self._prior_begins_now:
            self.saver.finish(out_of_time)
        if self.saver.phase == "idle":
            self.save()

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

    def generator_rate(self) -> float:
        """The generator's learning rate now."""
        progress = min(self.samples_seen / self.config.generator_stops, 1.0)
        return self.config.train.generator.rate_at(progress) * self.guard.state.rate_scale
