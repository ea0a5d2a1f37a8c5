"""Makes the engine of a run."""

import os

import torch
from torch import nn

from ebmscale.errors import ConfigError
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import Engine, EngineSettings
from ebmscale.training.engine_plain import PlainEngine
from ebmscale.training.engine_still import StillEngine
from ebmscale.training.rank_tensors import copy_buffers_from_first, copy_from_first
from ebmscale.world import World


def make_engine(module: nn.Module, optimizer: OptimizerSettings, settings: EngineSettings, world: World) -> Engine:
    """Makes the engine that trains `module` on `world.device` from rank 0's initial weights.

    Args:
        module: the engine takes it over, so do not use it afterwards. All parameters are float32 and trained (constants
            belong in buffers). Without parameters nothing is trained.
        optimizer: Adam's settings.
        settings: which engine and precision.
        world: the ranks that train together.

    Raises:
        ConfigError: DeepSpeed is asked for and not installed, or cannot be used as asked.
        ValueError: a parameter is frozen or not float32.
    """
    unfit = [n for n, p in module.named_parameters() if not p.requires_grad or p.dtype != torch.float32]
    if unfit:
        raise ValueError(f"an engine trains float32 parameters, every one of them; it cannot take {', '.join(unfit)}")
    module = module.to(world.device)
    copy_from_first(module.parameters(), world)
    copy_buffers_from_first(module, world)
    if not any(True for _ in module.parameters()):
        return StillEngine(module, settings, world)
    if settings.kind == "plain":
        return PlainEngine(module, optimizer, settings, world)
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)  # DeepSpeed reads it when it is imported
    try:
        from ebmscale.training.engine_deepspeed import DeepSpeedEngine  # noqa: PLC0415 (plain training does without)
    except ModuleNotFoundError as error:
        raise ConfigError(f"engine=deepspeed needs `pip install deepspeed`; or use engine=plain ({error}).") from error
    return DeepSpeedEngine(module, optimizer, settings, world)
