"""Checks before a run starts that the machine has the memory and the processors that it needs.

Only memory that a run certainly needs is counted. So no run that would fit is refused. `ebmscale plan` forecasts
the whole memory.
"""

import math

import torch

from ebmscale.config import RunConfig
from ebmscale.data.windows import WINDOW_BYTES
from ebmscale.errors import ConfigError
from ebmscale.machine import num_cpus, total_memory
from ebmscale.model.build import build_on_meta, build_ratio_on_meta
from ebmscale.model.updates import updates_per_batch

FP32, INT64 = 4, 8
STATE = 3  # weights and Adam's two moments, each in fp32


def check_threads(config: RunConfig) -> None:
    """Refuses more threads than this machine has processors.

    Raises:
        ConfigError: `num_threads` asks for more.
    """
    if config.num_threads > num_cpus():
        raise ConfigError(
            f"num_threads is {config.num_threads:,}, and this machine has {num_cpus()} processors; set it to at most "
            "that, or to 0 for torch's own choice."
        )


def check_room(
    config: RunConfig, shape: tuple[int, ...] | None, num_samples: int, size: int, device: torch.device
) -> None:
    """Refuses a run that cannot fit the memory of the device even if nothing else uses it.

    Args:
        config: of the run.
        shape: (C, H, W) of its images; None if the data set is packed when the run begins.
        num_samples: number of training samples. It bounds the samples that are read ahead.
        size: number of workers.
        device: the device that computes.

    Raises:
        ConfigError: the run needs more memory than the device has.
    """
    have = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else total_memory()
    if have is None:
        return
    needs = least_bytes(config, shape, num_samples, size, on_cuda=device.type == "cuda")
    total, most = sum(needs.values()), max(needs, key=lambda name: needs[name])
    if total > have:
        raise ConfigError(
            f"The run needs at least {total / 1e9:,.1f} GB of memory in a process, {needs[most] / 1e9:,.1f} GB of it "
            f"by {most}, and this machine has {have / 1e9:,.1f} GB; lower {most}."
        )


def least_bytes(
    config: RunConfig, shape: tuple[int, ...] | None, num_samples: int, size: int, on_cuda: bool = False
) -> dict[str, int]:
    """Bytes that the worker with the smallest share keeps at the same time, by the configuration keys that set them."""
    model, stages, prior, data = config.model, config.stages, config.prior, config.data
    row = model.latent_dim * FP32
    rows, ratio_rows = config.train.batch_size // size, stages.batch_size // size
    steps = max(config.posterior.num_steps, 1)
    chain_steps = 1 + (prior.num_steps if config.most_stages > 1 else 0)
    needs = {
        "stages.buffer_samples": stages.buffer_samples // size * row,
        "prior.num_chains or prior.num_steps": prior.num_chains // size * row * chain_steps,
        "train.batch_size or posterior.num_steps": rows * steps * row,
        "stages.batch_size or stages.updates_per_batch": ratio_rows * updates_per_batch(config, shape) * row,
    }
    num_ratio = sum(parameter.numel() for parameter in build_ratio_on_meta(config).parameters())
    needs["model.ratio.hidden, model.latent_dim or stages.max_stages"] = (
        STATE * FP32 * num_ratio * max(config.num_live, 1) // size
    )
    if shape is None:
        return needs
    networks, _ = build_on_meta(config, shape)
    num_weights = sum(parameter.numel() for parameter in networks.parameters())
    pixels = math.prod(shape)
    needs["model.latent_dim, model.generator.width or model.encoder.width"] = STATE * FP32 * num_weights // size
    needs["train.batch_size"] = rows * pixels * FP32
    if not on_cuda:
        windows = min(data.num_streams // size * data.shuffle_window, num_samples // size)
        needs["data.shuffle_window or data.num_streams"] = min(windows * pixels, WINDOW_BYTES) + windows * INT64
    return needs
