"""The engines' settings of a run, and the trainer of its ratios."""

from dataclasses import replace

import torch

from ebmscale.config import OptimizerBlock, RunConfig, StagesBlock
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.model.build import build_live_networks, build_ratio_network
from ebmscale.model.updates import updates_per_batch
from ebmscale.stages.live import LiveTrainer
from ebmscale.stages.make import make_stage_trainer
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.ratio_trainer import RatioTrainer
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.training.stopping import StopPoll
from ebmscale.world import World


def engine_settings(config: RunConfig, world: World) -> EngineSettings:
    """The engine's settings. `auto` takes DeepSpeed for several processes, because one process has nothing to shard."""
    kind = config.engine
    if kind == "auto":
        kind = "deepspeed" if world.size > 1 else "plain"
    return EngineSettings(kind, config.deepspeed.zero_stage, "bf16" if config.precision == "bf16" else "fp32")


def adam_settings(block: OptimizerBlock) -> OptimizerSettings:
    """Adam's settings."""
    return OptimizerSettings(block.rate, block.betas, weight_decay=block.weight_decay, clip_norm=block.clip_norm)


def make_ratio_trainer(
    config: RunConfig, shape: tuple[int, ...], settings: EngineSettings, world: World, poll: StopPoll
) -> RatioTrainer:
    """The trainer of the method's ratios."""
    prior = RatioSequence(StandardNormal(config.model.latent_dim), build_ratio_network(config).to(world.device))
    of_ratios = _ratio_settings(config, shape, settings.dtype)
    settings = replace(settings, precision="fp32")  # bf16 makes so small a network no faster, and its ratio worse
    network = build_live_networks(config) if config.num_live else build_ratio_network(config)
    engine = make_engine(network, adam_settings(config.train.ratio), settings, world)
    if config.method == "lebm" or (config.method == "tre" and config.num_live):
        return LiveTrainer(engine, build_live_networks(config), config.method, prior, of_ratios, world, poll)
    return make_stage_trainer(engine, prior, of_ratios, world, poll)


def _ratio_settings(config: RunConfig, shape: tuple[int, ...], chain_dtype: torch.dtype) -> RatioSettings:
    return RatioSettings(
        stages=_stages_block(config, shape),
        chains=config.prior,
        optimizer=config.train.ratio,
        seed=config.run.seed,
        num_streams=config.data.num_streams,
        target_moves=config.generator_stops > config.stages.start_samples,
        ends_at=config.train.max_samples,
        chain_bound=config.guard.chain_bound,
        chain_dtype=chain_dtype,
        amortised=config.is_amortised,
        maps=len(config.model.shape) > 1,
    )


def _stages_block(config: RunConfig, shape: tuple[int, ...]) -> StagesBlock:
    """The settings of the method's stages, with the number of updates. The one stage of `nce` lasts the whole run.

    Evidence is measured after a batch. So the time between two measurements is rounded up to whole batches. Otherwise
    settling could be due between two measurements and never begin.
    """
    batch, every, end = config.train.batch_size, config.stages.evidence_every, config.train.max_samples
    changes = {"max_stages": config.most_stages, "evidence_every": -(-every // batch) * batch}
    changes["updates_per_batch"] = updates_per_batch(config, shape)
    if config.method == "nce":
        changes |= {"min_samples": end, "max_samples": 2 * end}
    return config.stages.model_copy(update=changes)
