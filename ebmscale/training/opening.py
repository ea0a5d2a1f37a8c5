"""Opening a run: storage and data are checked, every part is built, and the newest valid checkpoint is restored."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebmscale.config import RunConfig, changed_keys
from ebmscale.data.checks import verify
from ebmscale.data.choose import lowest
from ebmscale.data.chunks import read_samples
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.split import has_validation_part, select
from ebmscale.errors import ConfigError, DataError, StorageError
from ebmscale.kernels.forms import FormName, choose_form
from ebmscale.model.build import build_model
from ebmscale.model.checkpoint import RATIO_FOLDER
from ebmscale.model.checkpoint_reader import CheckpointReader
from ebmscale.model.image_model import ImageModel
from ebmscale.model.kinds import refuse_other
from ebmscale.model.noise_level import NoiseLevel
from ebmscale.model.pixels import to_pixels
from ebmscale.model.run_folder import CONFIG_FILE, check_model, run_storage, saved_config
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage, open_storage
from ebmscale.storage_probe import probe
from ebmscale.training.begun import with_begun
from ebmscale.training.capacity import check_room, check_threads
from ebmscale.training.checkpoint import CheckpointStore, retried
from ebmscale.training.engines import make_engine
from ebmscale.training.first_networks import NETWORKS_FILE, first_networks, own_sources
from ebmscale.training.guard import Guard
from ebmscale.training.metrics import MeanMeter, PartTimer
from ebmscale.training.owner import FOLDER as OWNER
from ebmscale.training.owner import Lease
from ebmscale.training.precision import least_bf16_gain, with_precision
from ebmscale.training.restore import restore
from ebmscale.training.run import Run
from ebmscale.training.run_data import (
    DATA_FILE,
    RunData,
    check_run_data,
    load_or_pack,
    shape_of_samples,
    with_latents_of,
)
from ebmscale.training.sampling import AverageWeights, SamplingCopy
from ebmscale.training.saver import Saver
from ebmscale.training.start_from import Beginning, borrowed_checkpoint
from ebmscale.training.stopping import StopPoll, on_first
from ebmscale.training.trackers import check_trackers
from ebmscale.training.trainer_of_ratios import adam_settings, engine_settings, make_ratio_trainer
from ebmscale.training.training_set import TrainingSet
from ebmscale.world import World, owned_rows

log = logging.getLogger(__name__)

LEAST_HELD_OUT = 16
LISTEN_EVERY_S = 0.2


def open_run(config: RunConfig, world: World, stop: StopSignal, lease: Lease | None = None) -> Run:
    """Checks storage and data, builds the run, and restores its newest valid checkpoint if it has one (collective).

    Args:
        config: of the run.
        world: rank and size of this process.
        stop: ends the checks.
        lease: of the run, which rank 0 takes; None if no other process can write the run.

    Raises:
        ConfigError: the run exists with other settings, or there is no network for images of this size.
        DataError: the data set is missing or damaged, or is not the one that the run began with.
        StorageError: the run's storage cannot be written.
        LostRunError: another process writes the run.
        Interrupted: a rank was asked to stop before training began.
    """
    if world.size > config.data.num_streams:
        raise ConfigError(
            f"{world.size} workers cannot share out {config.data.num_streams} streams; start at most that many, or "
            "begin another run with a larger data.num_streams."
        )
    check_threads(config)
    check_trackers(config)
    if config.model.size_is_given:
        check_room(config, None, 0, world.size, world.device)
    config = config.with_absolute_addresses()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    storage, data = run_storage(config), open_storage(config.data).hearing(stop.event)
    reading = storage.hearing(stop.event)  # a stop ends its waits: nothing needs to be saved yet
    gain = least_bf16_gain(config, world)
    asked, begun = config, list[ImageModel]()  # the first rank's networks, which the engine takes to the others
    prepare = partial(_prepare, asked, gain, reading, data, lease, begun)
    config, ticket, counted, borrowed = on_first(world, stop, prepare)
    if lease is not None and not world.is_first:
        lease.join(*ticket)
    manifest = Manifest.load(data)
    manifest.counted.update(counted)
    shape = shape_of_samples(data, manifest, config)
    check_room(config, shape, manifest.num_samples, world.size, world.device)
    held_out, held_out_streams = _held_out(config, data, manifest, world)
    settings = engine_settings(config, world)
    adam = replace(adam_settings(config.train.generator), factors={"encoder.": config.train.generator.encoder_factor})
    networks = begun[0] if begun else build_model(config, shape)
    generator = make_engine(networks, adam, settings, world)
    poll = StopPoll(stop, world)
    kept_until = config.prior_begins if config.has_two_stages else -1  # other runs may start from there
    run = Run(
        config=config,
        world=world,
        storage=storage,
        data=TrainingSet(data, manifest, held_out, held_out_streams),
        generator=generator,
        sampling=SamplingCopy(generator, build_model(config, shape), settings.dtype, world.device),
        average=AverageWeights(generator, world) if config.averages_weights else None,
        noise_level=NoiseLevel(config.model.sigma, world.device),
        stages=make_ratio_trainer(config, shape, settings, world, poll),
        guard=Guard(config.guard),
        saver=Saver(CheckpointStore(reading, config.checkpoint, kept_until), world, config.checkpoint, lease),
        poll=poll,
        meter=MeanMeter(),
        timer=PartTimer(world.device),
        borrowed=borrowed,
    )
    run.sampling.use(_form(run))
    _restore(run)
    run.saver.prepare(run.share())
    return run


def _restore(run: Run) -> None:
    """Restores the newest valid checkpoint, if the run has any checkpoint (collective)."""
    if restore(run) is None and run.world.broadcast(run.saver.store.finished() if run.world.is_first else None):
        raise StorageError(
            f"The run {run.storage.url} has no valid checkpoint left, every one is damaged (see `ebmscale inspect`); "
            "restore one from a copy, or delete the run to start anew."
        )


def _form(run: Run) -> FormName:
    """The generator's form in chains, which rank 0 chooses for all ranks (collective); plain if there are no chains."""
    config, world = run.config, run.world
    if config.posterior.num_steps == 0:
        return "plain"
    rows = -(-config.train.batch_size // world.size)
    generator = run.sampling.model.generator
    chosen = choose_form(generator, config.model.latent_dim, rows, config.posterior.kernel) if world.is_first else None
    return world.broadcast(chosen)


def _prepare(
    config: RunConfig,
    gain: float,
    storage: Storage,
    data: Storage,
    lease: Lease | None,
    begun: list[ImageModel],
    check: Callable[[], None],
) -> tuple[RunConfig, Any, dict[Any, Any], str | None]:
    """The work of one rank before all begin: it tries the storage, takes the run, packs, verifies and counts the data.

    The networks that the run begins with are put into `begun`, unless it has a checkpoint.

    Returns:
        The configuration with the run's precision, the lease's ticket, `Manifest.counted`, and `Run.borrowed`.
    """
    probe(storage)
    refuse_other(storage, "run", "choose another run.name")
    patience = _Listening(check)
    if lease is not None:
        _check_foreign(storage)
        retried(partial(lease.take, check), config.checkpoint.retry_s, patience, time.monotonic, "It")
    old = saved_config(storage)
    beginning = Beginning.of(config, storage)
    began = old if beginning is None else beginning.config
    config = with_precision(config, gain, "auto" if began is None else began.precision)
    config = config if old is None else with_begun(config, old)
    if not config.model.size_is_given and (config.data.format is None or data.exists(FILE)):
        config = with_latents_of(config, Manifest.load(data))
    _check_unchanged(storage, old, config)
    for leftovers in ("", RATIO_FOLDER):
        storage.sweep(leftovers)
    manifest = load_or_pack(config, data, check)
    config = with_latents_of(config, manifest)
    seen = RunData.of(manifest) if old is None else check_run_data(storage, manifest, config)
    verify(data, manifest, config.data.verify, progress=lambda shard: check())
    select(manifest, "train", config.data.validation_fraction, config.data.held_out)
    sources, documents = own_sources(config, storage), {DATA_FILE: seen.model_dump_json(indent=1)}
    if sources is not None:
        documents[NETWORKS_FILE] = sources.model_dump_json(indent=1)
    if beginning is not None:
        beginning.copy_to(storage, config, manifest, check)
    if not CheckpointReader(storage).finished():
        begun.append(first_networks(config, shape_of_samples(data, manifest, config), data, manifest))
    for file, text in ({CONFIG_FILE: config.dump()} | documents).items():
        publish = partial(storage.publish, file, text.encode())
        retried(publish, config.checkpoint.retry_s, patience, time.monotonic, "It")
    return config, lease.ticket if lease is not None else None, manifest.counted, borrowed_checkpoint(storage)


class _Listening(threading.Event):
    """An event that is never set. A wait for it calls `check`, whose exception ends the wait."""

    def __init__(self, check: Callable[[], None]):
        super().__init__()
        self._check = check

    def wait(self, timeout: float | None = None) -> bool:
        end = time.monotonic() + (timeout or 0.0)
        while time.monotonic() < end:
            self._check()
            super().wait(min(LISTEN_EVERY_S, timeout or 0.0))
        return False


def _check_foreign(storage: Storage) -> None:
    """Refuses a folder whose configuration is not that of a run: it would be overwritten."""
    if storage.exists(CONFIG_FILE) and not storage.list(OWNER) and not CheckpointReader(storage).finished():
        raise ConfigError(
            f"{storage.url_of(CONFIG_FILE)} was not written by a run, and is not overwritten; choose another run.name, "
            "or move the file away."
        )


def _check_unchanged(storage: Storage, old: RunConfig | None, config: RunConfig) -> None:
    """Refuses to resume a run with settings that compute something else; warns where that cannot be known."""
    if old is None and CheckpointReader(storage).finished():
        log.warning("%s is not there: the configuration is assumed to be unchanged", storage.url_of(CONFIG_FILE))
    changed = changed_keys(old, config) if old is not None else []
    if changed:
        raise ConfigError(
            f"The run {storage.url} was made with other values of {', '.join(changed)}; "
            "choose another run.name, or set them back to resume it."
        )
    CheckpointReader(storage).newest(partial(check_model, config))


def _held_out(config: RunConfig, data: Storage, manifest: Manifest, world: World) -> tuple[Tensor, Tensor]:
    """This rank's held-out images, as pixels (B, C, H, W), and their streams (B,)."""
    block = config.data
    split = select(manifest, "validation", block.validation_fraction, block.held_out)
    chosen = lowest(split, config.stages.evidence_samples)
    if len(chosen) < LEAST_HELD_OUT:
        cure = f"raise data.validation_fraction (now {block.validation_fraction}) until it has {LEAST_HELD_OUT}"
        if has_validation_part(manifest):
            cure = f"pack it with {LEAST_HELD_OUT} or more in its validation part, or without that part"
        raise DataError(f"{data.url} has only {len(chosen)} held-out samples, too few to decide on; {cure}.")
    rows = owned_rows(len(chosen), block.num_streams, world)
    images = read_samples(data, manifest, chosen.at(rows.numpy()))
    return to_pixels(images).to(world.device), rows % block.num_streams
