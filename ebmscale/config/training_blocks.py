"""Parts of the configuration that say how a run is trained: optimisers, checkpoints, guard, metrics, workers."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ebmscale.address import Address
from ebmscale.config.blocks import Block, Fraction, NonNegative, Positive, PositiveFloat


class OptimizerBlock(Block):
    """Adam."""

    rate: PositiveFloat
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: PositiveFloat | None = None


class RatioOptimizerBlock(OptimizerBlock):
    """Adam of the ratio network; its rate follows the stages."""

    rate: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)


class GeneratorOptimizerBlock(OptimizerBlock):
    """Adam of generator and encoder; the rate falls along a cosine to `final_factor` of itself at the end.

    The end is the run's, or `stop_samples` where it is given: from there on both networks stay as they are, so that
    the ratios learn the posterior of a fixed model (two-stage training, as NCP-VAE does). With `ema_samples` an
    exponential moving average of the weights is kept, of this half-life in samples, and used for all but training.
    The encoder's rate is `encoder_factor` times the generator's.
    """

    rate: PositiveFloat = 1e-3
    encoder_factor: PositiveFloat = 0.3
    final_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    stop_samples: NonNegative = 0
    ema_samples: NonNegative = 0

    def rate_at(self, progress: float) -> float:
        """The rate at a share of the way to where training of the two networks ends: a cosine to `final_factor`."""
        return self.rate * (1 - (1 - self.final_factor) * 0.5 * (1 - math.cos(math.pi * progress)))


class TrainBlock(Block):
    """The budget, and the two optimisers."""

    batch_size: Positive = 128
    max_samples: Positive
    generator: GeneratorOptimizerBlock = GeneratorOptimizerBlock()
    ratio: RatioOptimizerBlock = RatioOptimizerBlock()


class CheckpointBlock(Block):
    """When checkpoints are written and which are kept.

    Kept are the last `keep_last`, the first at or after every multiple of `keep_every` samples (one that is put off by
    a slow storage counts too), and the `keep_best` best by `best_metric`.
    A storage that fails is tried again for `retry_s` seconds while training goes on; a stop waits up to `grace_s`
    seconds for its checkpoint.
    """

    every_samples: Positive = 50_000
    keep_last: Annotated[int, Field(ge=2)] = 2
    keep_every: NonNegative = 0
    keep_best: NonNegative = 0
    best_metric: Literal["held_out_mse", "loss", "auc", "kl_bound"] = "held_out_mse"
    best_mode: Literal["min", "max"] = "min"
    retry_s: Annotated[float, Field(ge=0)] = 600.0
    grace_s: PositiveFloat = 120.0


class GuardBlock(Block):
    """What counts as trouble, and how often it is put up with (see `training.guard`).

    An update whose loss is not finite, or above `spike_factor` times its running mean (0: never), is skipped. After
    `max_skips` in a row the run goes back to its last good checkpoint, at `rate_factor` of its learning rates and
    past the bad batches, at most `max_rollbacks` times. A chain whose root mean square leaves `chain_bound` restarts.
    """

    spike_factor: Annotated[float, Field(ge=0)] = 10.0
    max_skips: Positive = 3
    max_rollbacks: NonNegative = 3
    rate_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    chain_bound: PositiveFloat = 20.0


class MetricsBlock(Block):
    """How often metrics are reduced and written, and to what besides JSONL."""

    every_samples: Positive = 5_000
    tensorboard: bool = True


class DeepspeedBlock(Block):
    """Settings of the DeepSpeed engine."""

    zero_stage: Literal[0, 1, 2, 3] = 1


class LimitsBlock(Block):
    """Seconds that a worker may spend on one piece of each kind of work before it counts as hung; 0 is no limit.

    `setup_s` is for everything before the first batch, `chain_s` for a batch's posterior or prior chains, `update_s`
    for any other part of an update, `checkpoint_s` for handing over a checkpoint.
    """

    setup_s: Annotated[float, Field(ge=0)] = 1800.0
    update_s: Annotated[float, Field(ge=0)] = 600.0
    chain_s: Annotated[float, Field(ge=0)] = 600.0
    checkpoint_s: Annotated[float, Field(ge=0)] = 1800.0


class RayBlock(Block):
    """Training on Ray: `num_workers` is 0 (in this process), N, or [min, max] to shrink and grow with the cluster.

    `address` of a running cluster (else RAY_ADDRESS counts; else a Ray is started on this machine). A worker gets
    `cpus_per_worker` and `gpus_per_worker` (not given: one where `device` is cuda, or auto on a cluster with GPUs).
    After `max_failures` losses of workers with no checkpoint between them the run ends; so it does when too few
    workers could be had for `wait_s` seconds.
    """

    num_workers: NonNegative | tuple[Positive, Positive] = 0
    address: Address | None = None
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegative | None = None
    max_failures: NonNegative = 5
    wait_s: PositiveFloat = 1800.0
    resize_every_s: PositiveFloat = 60.0
    limits: LimitsBlock = LimitsBlock()

    @property
    def least_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The most workers that the run takes."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @field_validator("num_workers", mode="before")
    @classmethod
    def _is_a_number_or_two(cls, value: Any) -> Any:
        numbers = [value] if isinstance(value, int) else value
        if not isinstance(numbers, list | tuple) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"num_workers must be 0, a number of workers, or [min, max], but it is {value!r}")
        return value

    @model_validator(mode="after")
    def _is_a_range(self) -> "RayBlock":
        if self.least_workers > self.most_workers:
            raise ValueError(f"num_workers {list(self.num_workers)} must be [min, max]")  # type: ignore[arg-type]
        return self
