"""A run: everything that a configuration and a world make, and its state as a checkpoint."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.config import OptimizerBlock, RunConfig, changed_keys, parse_config
from ebmscale.data.cache import RangeCache
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest, verify
from ebmscale.data.pack import pack
from ebmscale.data.stream import ImageStream, read_split
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.errors import ConfigError, DataError, StorageError
from ebmscale.models import ImageShape
from ebmscale.storage import Storage, open_storage
from ebmscale.training.checkpoint import Checkpoint, CheckpointStore
from ebmscale.training.engine import Engine, EngineSettings, OptimizerSettings, make_engine
from ebmscale.training.metrics import MeanMeter, PartTimer
from ebmscale.training.networks import build_model, build_ratio_network
from ebmscale.training.sampling import SamplingCopy
from ebmscale.training.stages import StageTrainer
from ebmscale.training.streams import owned_rows
from ebmscale.training.tasks import to_pixels
from ebmscale.world import World

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
LEAST_HELD_OUT = 16


@dataclass
class Run:
    """The parts of a run in one process. `samples_seen` is its clock."""

    config: RunConfig
    world: World
    storage: Storage
    manifest: Manifest
    stream: ImageStream
    held_out: Tensor
    held_out_streams: Tensor
    generator: Engine
    sampling: SamplingCopy
    stages: StageTrainer
    store: CheckpointStore
    meter: MeanMeter
    timer: PartTimer
    samples_seen: int = 0

    def save(self) -> None:
        """Writes a checkpoint in the background (collective; rank 0 writes)."""
        stage_tensors, stage_values = self.stages.checkpoint()
        tensors = {
            "generator": self.generator.state(),
            "ratio": self.stages.engine.state(),
            "chains": stage_tensors,
        }
        state = {
            "samples_seen": self.samples_seen,
            "world_size": self.world.size,
            "image_shape": self.manifest.image_shape,
            "stages": stage_values,
            "meters": self.world.gather_objects(self.meter.state()),
        }
        if self.world.is_first:
            ratios = [self.stages.prior.stage_weights(k + 1) for k in range(self.stages.prior.num_stages)]
            self.store.save(self.samples_seen, tensors, state, self.timer.state(), ratios)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint, whatever world and engine wrote it (collective)."""
        self.generator.load_state(checkpoint.tensors["generator"])
        self.stages.engine.load_state(checkpoint.tensors["ratio"])
        prior = self.stages.prior.prefix(0)
        for weights in checkpoint.ratios:
            prior = prior.append({name: weight.to(self.world.device) for name, weight in weights.items()})
        self.stages.restore(prior, checkpoint.tensors["chains"], checkpoint.state["stages"])
        meters = checkpoint.state["meters"]
        if len(meters) == self.world.size:
            self.meter.load_state(meters[self.world.rank])
        self.timer.load_state(checkpoint.clock)
        self.samples_seen = checkpoint.samples_seen
        self.sampling.refresh()

    def generator_rate(self) -> float:
        """The generator's learning rate now: a cosine from the rate to its final factor at the run's end."""
        settings = self.config.train.generator
        progress = min(self.samples_seen / self.config.train.max_samples, 1.0)
        return settings.rate * (1 - (1 - settings.final_factor) * 0.5 * (1 - math.cos(math.pi * progress)))


def run_storage(config: RunConfig) -> Storage:
    """Where a run lives."""
    return open_storage(config.storage).child(config.run.name)


def open_run(config: RunConfig, world: World) -> Run:
    """Checks storage and data, builds the run, and restores its newest valid checkpoint if it has one (collective).

    Raises:
        ConfigError: the run exists with other settings; the images have no network form.
        DataError: the data set is missing or damaged.
        StorageError: the run's storage cannot be written.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    storage = run_storage(config)
    data = open_storage(config.data)
    if world.is_first:
        storage.probe()
        _claim(storage, config)
        _pack_if_absent(data, config)
    world.barrier()
    manifest = Manifest.load(data)
    if world.is_first:
        verify(data, manifest, config.data.verify)
    image_shape = _image_shape(data, manifest)
    store = CheckpointStore(storage, config.checkpoint.keep_last, config.checkpoint.keep_every)
    checkpoint = store.latest()
    if checkpoint is None and store.has_finished():
        raise StorageError(
            f"The run {storage.url} has no valid checkpoint left, every one is damaged (see `ebmscale inspect`); "
            "restore one from a copy, or delete the run to start anew."
        )
    samples_seen = checkpoint.samples_seen if checkpoint else 0
    model = build_model(config, image_shape)
    settings = _engine_settings(config, world)
    generator = make_engine(model, _adam(config.train.generator), settings, world)
    network = build_ratio_network(config)
    ratio = make_engine(network, _adam(config.train.ratio), settings, world)
    held_out, held_out_streams = _held_out(config, data, manifest, world)
    prior = RatioSequence(StandardNormal(config.model.latent_dim), build_ratio_network(config).to(world.device))
    run = Run(
        config=config,
        world=world,
        storage=storage,
        manifest=manifest,
        stream=_open_stream(config, data, manifest, world, samples_seen),
        held_out=held_out,
        held_out_streams=held_out_streams,
        generator=generator,
        sampling=SamplingCopy(generator, build_model(config, image_shape), settings.dtype, world.device),
        stages=StageTrainer(
            ratio,
            prior,
            config.stages,
            config.prior,
            config.train.ratio,
            world,
            config.run.seed,
            config.data.num_streams,
        ),
        store=store,
        meter=MeanMeter(),
        timer=PartTimer(world.device),
    )
    if checkpoint is not None:
        run.restore(checkpoint)
    return run


def _claim(storage: Storage, config: RunConfig) -> None:
    """Writes the resolved configuration, unless the run has checkpoints of one that computes something else."""
    if storage.exists(CONFIG_FILE) and CheckpointStore(storage).has_finished():
        old = parse_config(storage.read_text(CONFIG_FILE), source=storage.url_of(CONFIG_FILE))
        changed = changed_keys(old, config)
        if changed:
            raise ConfigError(
                f"The run {storage.url} was made with other values of {', '.join(changed)}; "
                "choose another run.name, or set them back to resume it."
            )
    storage.publish(CONFIG_FILE, config.dump().encode())


def _pack_if_absent(data: Storage, config: RunConfig) -> None:
    """Packs the data set that the configuration names where its folder has none yet."""
    if config.data.format is not None and not data.exists("manifest.json"):
        log.info("packing %s into %s", config.data.format, data.url)
        pack(open_source(config.data.format, config.data.source or ""), data)


def _image_shape(data: Storage, manifest: Manifest) -> ImageShape:
    """(C, H, W) of the set's images; other arrays are refused."""
    if manifest.dtype != "uint8" or len(manifest.image_shape) != 3:
        raise DataError(
            f"{data.url} holds {manifest.dtype} arrays of shape {manifest.image_shape}; "
            "training takes uint8 images (C, H, W), so pack images."
        )
    channels, height, width = manifest.image_shape
    return channels, height, width


def _engine_settings(config: RunConfig, world: World) -> EngineSettings:
    """The engine: `auto` takes DeepSpeed for several processes or on CUDA."""
    kind = config.engine
    if kind == "auto":
        kind = "deepspeed" if world.size > 1 or world.device.type == "cuda" else "plain"
    return EngineSettings(kind, config.deepspeed.zero_stage, config.precision)


def _adam(block: OptimizerBlock) -> OptimizerSettings:
    return OptimizerSettings(block.rate, block.betas, weight_decay=block.weight_decay, clip_norm=block.clip_norm)


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
        cache=RangeCache(data, manifest, block.cache, block.cache_bytes) if block.cache and remote else None,
    )


def _held_out(config: RunConfig, data: Storage, manifest: Manifest, world: World) -> tuple[Tensor, Tensor]:
    """This rank's held-out images, as pixels (B, C, H, W), and their streams (B,)."""
    images, _, _ = read_split(
        data, manifest, "validation", config.stages.evidence_samples, config.data.validation_fraction
    )
    if len(images) < LEAST_HELD_OUT:
        raise DataError(
            f"{data.url} has only {len(images)} held-out images, too few to decide on; raise data.validation_fraction "
            f"(now {config.data.validation_fraction}) until it has {LEAST_HELD_OUT}."
        )
    rows = owned_rows(len(images), config.data.num_streams, world)
    return to_pixels(images[rows]).to(world.device), rows % config.data.num_streams


def load_run_config(storage: Storage) -> RunConfig:
    """The configuration saved with a run.

    Raises:
        ConfigError: there is no run.
    """
    if not storage.exists(CONFIG_FILE):
        raise ConfigError(f"There is no run at {storage.url}; give the address that `ebmscale train` printed.")
    return parse_config(storage.read_text(CONFIG_FILE), source=storage.url_of(CONFIG_FILE))
