"""Forecasts the memory of a worker: formulas for persistent data, and the real computations on the meta device.

The formulas describe what `training/` and DeepSpeed keep; `tests/forecast/test_plan.py` compares them with measured
peaks.

Shapes: B rows of one worker, N chains of one worker, K stages, Z latent, C H W image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebmscale.config import RunConfig
from ebmscale.data.reader import KEPT_BYTES
from ebmscale.data.stream import AHEAD_BYTES, BATCHES_AHEAD, TOGETHER_BYTES
from ebmscale.data.windows import WINDOW_BYTES
from ebmscale.density.langevin import ChainTrace, LangevinSettings, run_chain, start
from ebmscale.density.losses import n2ce
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.forecast.footprint import FP32, EngineChoice, Footprint
from ebmscale.forecast.live_bytes import LiveBytes
from ebmscale.kernels.batch_inner import BatchInnerGenerator
from ebmscale.model.build import build_on_meta
from ebmscale.model.image_model import ImageModel
from ebmscale.model.posterior import PosteriorSample, posterior_target
from ebmscale.model.updates import updates_per_batch
from ebmscale.stages.density_negatives import FRESH
from ebmscale.training.objective import generator_loss

SIMULATED_STEPS = 2
COPIES_OF_PARTICLES = 8
"""The number of tables of the particles' size that sequential Monte Carlo holds at the same time."""


@dataclass(frozen=True)
class Share:
    """The part of a run that one worker has: the worker with the largest part.

    Attributes:
        size: the number of workers.
        num_streams: streams that it owns.
        num_rows: rows of a batch.
        num_ratio_rows: rows of a ratio update.
        num_chains: prior chains, or particles of the prior.
        num_held_out: held-out images.
        fraction: its part of the run's streams.
    """

    size: int
    num_streams: int
    num_rows: int
    num_ratio_rows: int
    num_chains: int
    num_held_out: int
    fraction: float

    @classmethod
    def of(cls, config: RunConfig, size: int) -> "Share":
        """The largest share among `size` workers."""
        total = config.data.num_streams
        owned = -(-total // size)

        def rows(count: int) -> int:
            whole, rest = divmod(count, total)
            return owned * whole + min(owned, -(-rest // size))

        stages = config.stages
        return cls(
            size,
            owned,
            rows(config.train.batch_size),
            rows(stages.batch_size),
            rows(config.prior.num_particles if config.uses_density else config.prior.num_chains),
            rows(stages.evidence_samples),
            owned / total,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker.

    Attributes:
        kept: persistent memory, by name.
        passing: additional memory of set-up, of a checkpoint and of each part of an update, by name; only one of
            them is in use at a time.
    """

    kept: dict[str, int]
    passing: dict[str, int]

    @property
    def peak(self) -> int:
        """The greatest total."""
        return sum(self.kept.values()) + max(self.passing.values())


def forecast_memory(
    config: RunConfig, shape: tuple[int, ...], num_samples: int, engine: EngineChoice, size: int, on_cuda: bool = False
) -> Memory:
    """The memory of the worker with the largest share, in the run's last stage.

    Args:
        config: the run.
        shape: (C, H, W).
        num_samples: of the data set.
        engine: of the training.
        size: the number of workers.
        on_cuda: whether it computes on a CUDA device; then the forecast leaves out the host's memory.
    """
    share, half = Share.of(config, size), 2 if config.precision == "bf16" else FP32
    model, network = build_on_meta(config, shape)
    ratio = Footprint.of(network, FP32, engine, size)
    networks = [Footprint.of(model, half, engine, size), *[ratio] * max(config.num_live, 1)]
    num_ratio = ratio.num_elements
    dim, pixels = config.model.latent_dim, math.prod(shape)
    tables = share.num_streams * (config.stages.buffer_samples // config.data.num_streams)
    kept = {
        "weights": sum(net.weights() for net in networks),
        "master weights": sum(net.masters() for net in networks),
        "Adam's moments": sum(net.moments() for net in networks),
        "kept gradients, buckets": sum(net.kept_gradients() for net in networks),
        "sampling copy": networks[0].num_elements * half,
        "its form in chains": _form_elements(config, model.generator, on_cuda) * half,
        "frozen ratios": num_ratio * FP32 * (config.most_stages + 1),
        "latents": tables * (1 + config.is_amortised) * dim * FP32 + _negatives_bytes(config, share),
        "held-out images": share.num_held_out * pixels * FP32,
    }
    state = sum(3 * FP32 * net.num_elements for net in networks)
    if not on_cuda:
        kept["shards being read"] = _data_bytes(config, share, pixels, num_samples)
        kept["freed, kept by malloc"] = networks[0].kept_by_malloc()
        kept["copy for checkpoints"] = -(-state // size) + kept["latents"]
    passing = _computations(config, shape, share, model, network)
    if on_cuda and config.posterior.num_steps:  # a graph keeps the memory of its chains
        kept["graphs of posterior chains"] = passing["posterior"] + passing["evidence"]
    for part, net, width in (("generator", networks[0], half), ("ratio", ratio, FP32)):
        backward = max(passing[part] - net.num_elements * width, 0)  # the footprint counts the gradients
        passing[part] = max(backward + net.gradients(), net.step())
    if not on_cuda:
        passing["generator"] += _largest_convolution(model) * half
    passing["weights to the sampling copy"] = networks[0].refresh()
    passing["set-up"] = networks[0].setup()
    if engine.zero_stage != 3:  # in ZeRO 3 freed memory is only partly reused
        passing["set-up"] -= min(kept["its form in chains"] + kept.get("copy for checkpoints", 0), passing["set-up"])
    return Memory(kept, passing)


def _form_elements(config: RunConfig, generator: nn.Module, on_cuda: bool) -> int:
    """Weights in the layouts of `kernels.batch_inner`. For `auto`, which chooses by time, the larger layout counts."""
    is_plain = config.posterior.kernel == "plain" or on_cuda or not BatchInnerGenerator.supports(generator)
    return 0 if is_plain else BatchInnerGenerator.num_copied(generator)


def _largest_convolution(model: nn.Module) -> int:
    """Weights of the largest convolution. oneDNN copies them into the order in which it computes their gradients."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return max((layer.weight.numel() for layer in model.modules() if isinstance(layer, kinds)), default=0)


def _computations(
    config: RunConfig, shape: tuple[int, ...], share: Share, model: ImageModel, network: nn.Module
) -> dict[str, int]:
    """Peak bytes of each part of an update in the last stage, including gradients of parameters."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    dim, sigma = config.model.latent_dim, 1.0  # its value changes no size
    prior = RatioSequence(StandardNormal(dim), network)
    for _ in range(config.most_stages):
        prior = prior.append({name: weight.to(torch.float32) for name, weight in network.state_dict().items()})
    trained, sampler = model.to(dtype), build_on_meta(config, shape)[0].to(dtype).requires_grad_(False)
    ratio = build_on_meta(config, shape)[1]

    two_steps = LangevinSettings(SIMULATED_STEPS, 0.1)

    def images(count: int) -> Tensor:
        return torch.empty(count, *shape, device="meta")

    def posterior(count: int) -> None:
        x, z = images(count), _rows(count, dim)
        most = max(config.posterior.num_steps, SIMULATED_STEPS)
        noise = torch.empty(count, most, dim, device="meta")
        if sampler.encoder is not None:
            with torch.no_grad():
                sampler.encoder(x.to(dtype))
            if config.posterior.num_steps == 0:
                return
        target = posterior_target(prior, sampler.generator, x, sigma)
        run_chain(target, start(target, z), noise[:, :SIMULATED_STEPS], two_steps)

    def generator() -> None:
        x, z = images(share.num_rows), _rows(share.num_rows, dim)
        mean, encoded = trained(z.to(dtype), x.to(dtype))
        encoded = None if encoded is None else (encoded[0].float(), encoded[1].float())
        drawn = None if encoded is None else z
        sample = PosteriorSample(z, drawn, drawn, ChainTrace(z, z, z))
        generator_loss(x, mean.float(), sigma, encoded, sample)[0].sum().backward()

    def ratio_updates() -> None:
        rows = share.num_ratio_rows
        drawn = _rows(2 * updates_per_batch(config, shape) * rows, dim)
        f_q, f_p = ratio(drawn[: 2 * rows]).split(rows)
        n2ce(f_q, f_p, config.stages.magnification).backward()

    def new_stage(num_chains: int) -> None:
        if config.uses_density:
            particles = [_rows(config.prior.num_particles, dim) for _ in range(COPIES_OF_PARTICLES)]
            with torch.no_grad():
                prior.log_ratios(particles[0])
        else:
            chains(num_chains, config.prior.equilibrate_steps)

    def fresh_negatives() -> None:
        if config.uses_density and config.most_stages:
            with torch.no_grad():
                ratio(_rows(-(-FRESH // share.size), dim))

    def chains(num_chains: int, num_steps: int) -> None:
        noise = torch.empty(num_chains, max(num_steps, SIMULATED_STEPS), dim, device="meta")
        target, z = prior.evaluate, _rows(num_chains, dim)
        run_chain(target, start(target, z), noise[:, :SIMULATED_STEPS], two_steps)

    return {
        "posterior": peak_of(lambda: posterior(share.num_rows)),
        "generator": peak_of(generator) if config.networks_train else 0,
        "prior": 0 if config.uses_density else peak_of(lambda: chains(share.num_chains, config.prior.num_steps)),
        "ratio": peak_of(ratio_updates),
        "evidence": max(peak_of(lambda: posterior(share.num_held_out)), peak_of(fresh_negatives)),
        "new stage": peak_of(lambda: new_stage(max(share.num_chains, share.num_held_out))),
    }


def peak_of(action: Callable[[], object]) -> int:
    """Peak bytes of the tensors that an action makes on the meta device."""
    with LiveBytes() as live:
        action()
    return live.peak


def _negatives_bytes(config: RunConfig, share: Share) -> int:
    """Bytes of chains or of particles.

    Every worker holds all particles. Of its own particles it holds two copies, with what their moves need.
    """
    dim = config.model.latent_dim
    if config.uses_density:
        return (2 * config.prior.num_particles * dim + 2 * share.num_chains * (2 * dim + 2)) * FP32
    return (share.num_chains + share.num_held_out) * dim * FP32


def _rows(count: int, dim: int) -> Tensor:
    return torch.empty(count, dim, device="meta")


def _data_bytes(config: RunConfig, share: Share, pixels: int, num_samples: int) -> int:
    """Bytes of windows, of batches read ahead, and of small shards that are kept whole; a pixel is a byte."""
    windows = min(share.num_streams * config.data.shuffle_window, num_samples) * pixels
    if windows > WINDOW_BYTES:  # windows are read in pieces: a new one while an old one is in use
        windows = min(windows, 2 * WINDOW_BYTES)
    batch = share.num_rows * pixels
    return (
        windows
        + min(BATCHES_AHEAD * batch, AHEAD_BYTES + max(batch, TOGETHER_BYTES))
        + min(KEPT_BYTES, num_samples * pixels)
    )
