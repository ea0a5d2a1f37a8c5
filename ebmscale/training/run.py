"""A run: everything that a configuration and a world make, and its state as a checkpoint."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.data.cache import RangeCache
from ebmscale.data.manifest import Manifest
from ebmscale.data.stream import Batch, ImageStream
from ebmscale.errors import DamagedError, DivergenceError, EbmscaleError
from ebmscale.kernels.forms import is_for
from ebmscale.model.checkpoint import SavedCheckpoint
from ebmscale.model.pieces import Piece, Span, check_fit, shapes_of
from ebmscale.model.residuals import Residuals
from ebmscale.model.run_documents import ClockState, RunState
from ebmscale.stages.stage_trainer import StageTrainer
from ebmscale.storage import Storage
from ebmscale.training.engine import Engine
from ebmscale.training.guard import Guard
from ebmscale.training.metrics import MeanMeter, PartTimer
from ebmscale.training.sampling import AverageWeights, SamplingCopy
from ebmscale.training.saver import Draft, Saver
from ebmscale.training.stopping import StopPoll
from ebmscale.world import World


@dataclass
class Run:
    """The parts of a run in one process.

    `samples_seen` is its clock, `num_samples` what there is to train on.
    """

    config: RunConfig
    world: World
    storage: Storage
    data: Storage
    manifest: Manifest
    num_samples: int
    held_out: Tensor
    held_out_streams: Tensor
    generator: Engine
    sampling: SamplingCopy
    average: AverageWeights | None
    stages: StageTrainer
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
        """Whether a multiple of `every` samples was passed since `what` was last done, or this is the last time."""
        if last:
            return self.done_at[what] != self.samples_seen
        return self.done_at[what] // every != self.samples_seen // every

    def batches(self) -> Iterator[Batch]:
        """The batches from `samples_seen` on; those of an earlier call end."""
        if self.stream is not None:
            self.stream.close()
        self.stream = _open_stream(self.config, self.data, self.manifest, self.world, self.samples_seen)
        return iter(self.stream)

    def close(self) -> None:
        """Ends the threads that read ahead and that write; what is not written by then is given up."""
        if self.stream is not None:
            self.stream.close()
        self.saver.close()

    def share(self) -> dict[str, list[Piece]]:
        """This rank's share of the state, as views."""
        share = {"generator": self.generator.share(), "ratio": self.stages.engine.share()}
        average = {"average": self.average.share(self.world)} if self.average is not None else {}
        return share | average | {"chains": self.stages.share()}

    @property
    def generator_trains(self) -> bool:
        """Whether the generator is still training at `samples_seen`."""
        return self.samples_seen < self.config.generator_stops

    def save(self) -> None:
        """Copies the state now and writes a checkpoint in the background (collective)."""
        self.done_at["checkpoint"] = self.samples_seen
        shapes = {
            "generator": self.generator.shapes(),
            "ratio": self.stages.engine.shapes(),
            "chains": self.stages.shapes(),
        }
        if self.average is not None:
            shapes["average"] = self.average.shapes()
        state = {
            "samples_seen": self.samples_seen,
            "done_at": self.done_at,
            "world_size": self.world.size,
            "image_shape": self.manifest.image_shape,
            "stages": self.stages.values(),
            "guard": self.guard.values(),
            "measured": self.measured,
            "residuals": asdict(self.residuals) if self.residuals is not None else None,
            "form": self.sampling.form,
            "meters": self.world.gather_objects(self.meter.state()),
        }
        about = {
            "samples_seen": self.samples_seen,
            "stage": self.stages.state.stage,
            "good": self.guard.state.bad_in_row == 0,
            "world_size": self.world.size,
            "metrics": dict(self.measured),
            "tensors": {stem: {name: list(size) for name, size in sizes.items()} for stem, sizes in shapes.items()},
        }
        frozen = self.stages.frozen
        ratios = [frozen.stage_weights(k + 1) for k in range(frozen.num_stages)]
        draft = Draft(about, {"state": json.loads(json.dumps(state)), "clock": self.timer.state()}, ratios)
        self.saver.begin(self.samples_seen, self.share(), draft)

    def restore(self, only_good: bool = False) -> SavedCheckpoint | None:
        """Goes to the newest valid checkpoint, whatever world and engine wrote it (collective).

        Returns:
            The checkpoint; None where there is none.

        Args:
            only_good: pass over those that were saved amid skipped updates.

        Raises:
            StorageError: the storage cannot be read.
            ConfigError: the checkpoint is of another network.
        """
        store = self.saver.store
        for name in self.world.broadcast(store.candidates() if self.world.is_first else None):
            saved, loaded = self._read(name)
            if saved is None or loaded is None or (only_good and not saved.manifest.good):
                continue
            self._take(saved, *loaded)
            return saved
        return None

    def _read(self, name: str) -> tuple[SavedCheckpoint | None, tuple[Any, ...] | None]:
        """What this rank needs of a checkpoint; nothing where some rank found it damaged (collective)."""
        saved, loaded = None, None
        error: EbmscaleError | None = None
        try:
            saved = self.saver.store.open(name)
            self.generator.check_shapes(saved.shapes("generator"))
            self.stages.engine.check_shapes(saved.shapes("ratio"))
            self.stages.check_shapes(saved.shapes("chains"))
            wanted = {
                "generator": self.generator.wanted(),
                "ratio": self.stages.engine.wanted(),
                "chains": self.stages.wanted(),
            }
            if self.average is not None:
                wanted["average"] = self.average.wanted()
            loaded = (
                {stem: saved.read(stem, spans) for stem, spans in wanted.items()},
                saved.state(),
                saved.clock(),
                saved.ratios(),
            )
            for ratio in loaded[-1]:
                expected = shapes_of(self.stages.frozen.network.state_dict())
                check_fit(shapes_of(ratio), expected, f"a frozen ratio of checkpoint {name}")
        except EbmscaleError as problem:
            error = problem
        errors = [one for one in self.world.gather_objects(error) if one is not None]
        fatal = [one for one in errors if not isinstance(one, DamagedError)]
        if fatal:
            raise fatal[0]
        if errors:
            if self.world.is_first:
                self.saver.store.mark_damaged(name, str(errors[0]))
            return None, None
        return saved, loaded

    def _take(
        self,
        saved: SavedCheckpoint,
        tensors: dict[str, dict[Span, Tensor]],
        state: RunState,
        clock: ClockState,
        ratios: list[dict[str, Tensor]],
    ) -> None:
        self.generator.restore(tensors["generator"])
        self.stages.engine.restore(tensors["ratio"])
        prior = self.stages.frozen.prefix(0)
        for weights in ratios:
            prior = prior.append({name: weight.to(self.world.device) for name, weight in weights.items()})
        self.stages.restore(prior, tensors["chains"], state.stages.model_dump())
        if self.average is not None:
            self.average.restore(tensors["average"])
        self.guard.load_values(asdict(state.guard))
        if len(state.meters) == self.world.size:
            self.meter.load_state(state.meters[self.world.rank])
        self.timer.load_state(clock.model_dump())
        self.measured, self.done_at = dict(state.measured), state.done_at.model_dump()
        self.residuals = state.residuals
        self.samples_seen = saved.samples_seen
        self.saver.last_saved = saved.samples_seen
        form = state.form
        if self.config.posterior.kernel == "auto" and form is not None and is_for(form, self.world.device):
            self.sampling.use(form)  # the one that the run began with, whatever is faster here and now
        self.sampling.refresh()

    def roll_back(self, reason: str) -> int:
        """Goes back to the last good checkpoint at lower rates, past the present batch (collective).

        `samples_seen` goes on: no sample comes twice, and the metrics' curve has no second past.

        Returns:
            Where the checkpoint was.

        Raises:
            DivergenceError: that was done as often as it may be, or there is no good checkpoint.
        """
        self.guard.check_run_rollbacks(reason)
        now, done_at, guard, meter = self.samples_seen, self.done_at, self.guard.state, self.meter.state()
        saved = self.restore(only_good=True)
        if saved is None:
            raise DivergenceError(
                f"Training diverged: {reason}, and there is no checkpoint to go back to; lower train.generator.rate, "
                "train.ratio.rate or the chain's step_size."
            )
        before = self.guard.state
        self.guard.state = guard
        self.guard.roll_back(before, now - saved.samples_seen)
        self.stages.shift(now - saved.samples_seen)
        self.samples_seen, self.done_at = now, done_at
        self.meter.load_state(meter)
        return saved.samples_seen

    def generator_rate(self) -> float:
        """The generator's learning rate now."""
        progress = min(self.samples_seen / self.config.generator_stops, 1.0)
        return self.config.train.generator.rate_at(progress) * self.guard.state.rate_scale


def _open_stream(config: RunConfig, data: Storage, manifest: Manifest, world: World, start: int) -> ImageStream:
    block = config.data
    remote = data.local_path() is None
    return ImageStream(
        data,
        manifest,
        split="train",
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        num_streams=block.num_streams,
        window=block.shuffle_window,
        rank=world.rank,
        size=world.size,
        start=start,
        max_damaged=block.max_damaged,
        validation_fraction=block.validation_fraction,
        held_out=block.held_out,
        cache=RangeCache(data, manifest, block.cache, block.cache_bytes) if block.cache and remote else None,
    )
