"""Parts of the configuration that say how a run is trained: optimisers, checkpoints, guard, metrics, workers."""

import math
from typing import Any, Literal

from pydantic import field_validator, model_validator

from ebmscale.address import Address
from ebmscale.config.fields import Block, Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFloat, key

WEIGHT_DECAY = "Decoupled weight decay: an update multiplies the weights by 1 - rate * weight_decay."


class OptimizerBlock(Block):
    """Adam."""

    rate: PositiveFloat = key("Learning rate.", change="resume", mutable=True)
    betas: tuple[Fraction, Fraction] = key("Decay rates of the moments.", (0.5, 0.999))
    weight_decay: NonNegativeFloat = key(WEIGHT_DECAY, 0.0)
    clip_norm: PositiveFloat | None = key("Largest norm of a gradient. Larger gradients are scaled down to it.", None)


class RatioOptimizerBlock(OptimizerBlock):
    """Adam of the ratio network. Its rate falls at the end of each stage."""

    rate: PositiveFloat = key("Learning rate at the start of a stage.", 1e-3, change="resume", mutable=True)
    betas: tuple[Fraction, Fraction] = key("Decay rates of the moments.", (0.9, 0.999))
    weight_decay: NonNegativeFloat = key(WEIGHT_DECAY, 0.3)


class GeneratorOptimizerBlock(OptimizerBlock):
    """Adam of generator and encoder. The rate falls along a cosine to `final_factor` of itself at the end."""

    rate: PositiveFloat = key("Learning rate at the start.", 1e-3, change="resume", mutable=True)
    encoder_factor: PositiveFloat = key("The encoder's rate divided by the generator's.", 0.3)
    final_factor: float = key("The rate at the end divided by the rate at the start.", 1.0, gt=0, le=1, mutable=True)
    stop_samples: NonNegative = key(
        "Time after which generator and encoder do not train. Then the ratios learn the posterior of a fixed model "
        "(two stages of training, as in NCP-VAE). 0: they train to the end of the run.",
        0,
        unit="samples",
    )
    ema_samples: NonNegative = key(
        "Half-life of an exponential moving average of the weights, which everything but training uses. 0: no average.",
        0,
        unit="samples",
    )

    def rate_at(self, progress: float) -> float:
        """The rate at `progress`, the completed share of the two networks' training: a cosine to `final_factor`."""
        return self.rate * (1 - (1 - self.final_factor) * 0.5 * (1 - math.cos(math.pi * progress)))


class TrainBlock(Block):
    """The budget, and the two optimisers."""

    batch_size: Positive = key("Number of images in a batch, over all workers.", 128)
    max_samples: Positive = key(
        "Length of the run. It ends before that once the generator has stopped and no further stage would pay.",
        unit="samples",
        change="resume",
    )
    generator: GeneratorOptimizerBlock = key("Optimiser of generator and encoder.", GeneratorOptimizerBlock())
    ratio: RatioOptimizerBlock = key("Optimiser of the ratio network.", RatioOptimizerBlock())


class CheckpointBlock(Block):
    """When checkpoints are written and which are kept."""

    every_samples: Positive = key("Time between two checkpoints.", 50_000, unit="samples")
    keep_last: int = key("Number of newest checkpoints that are kept.", 2, ge=2)
    keep_every: NonNegative = key(
        "The first checkpoint at or after every multiple of this is kept. 0: none.", 0, unit="samples"
    )
    keep_best: NonNegative = key("Number of best checkpoints, by `best_metric`, that are kept.", 0)
    best_metric: Literal["held_out_mse", "loss", "auc", "kl_bound"] = key(
        "The metric that `keep_best` compares.", "held_out_mse"
    )
    best_mode: Literal["min", "max"] = key("Whether a small or a large value is best.", "min")
    retry_s: NonNegativeFloat = key(
        "How long writes to a failing storage are repeated. Training continues during that time.", 600.0, unit="seconds"
    )
    grace_s: PositiveFloat = key("How long a stop waits for its checkpoint.", 120.0, unit="seconds")


class GuardBlock(Block):
    """What counts as a bad update, and what follows (see `training/guard.py`)."""

    spike_factor: NonNegativeFloat = key(
        "If a loss is above this multiple of its running mean, the update is skipped. 0: never.", 10.0, mutable=True
    )
    max_skips: Positive = key("After this many bad updates in a row the run goes back to its last good checkpoint.", 3)
    max_rollbacks: NonNegative = key("Number of times that the run may go back.", 3)
    rate_factor: float = key("The learning rates are multiplied by this when the run goes back.", 0.5, gt=0, le=1)
    chain_bound: PositiveFloat = key(
        "A chain whose root mean square exceeds this has diverged and is restarted.", 20.0, mutable=True
    )


class MetricsBlock(Block):
    """How often metrics are written, and where besides JSON lines."""

    every_samples: Positive = key("Time between two lines.", 5_000, unit="samples")
    tensorboard: bool = key("Whether TensorBoard files are written, if the run is in a local folder.", True)
    trackers: tuple[Literal["wandb", "mlflow"], ...] = key(
        "Services that also get numbers and pictures: Weights & Biases, MLflow. Install their packages yourself.", ()
    )


class DeepspeedBlock(Block):
    """The DeepSpeed engine."""

    zero_stage: Literal[0, 1, 2, 3] = key(
        "What is sharded over the workers. 0: nothing. 1: the optimiser's state. 2: gradients too. 3: weights too.", 1
    )


class LimitsBlock(Block):
    """How long a worker may spend on one piece of work before it counts as hung. 0: no limit."""

    setup_s: NonNegativeFloat = key("Time for everything before the first batch.", 1800.0, unit="seconds")
    update_s: NonNegativeFloat = key("Time for any part of an update except the chains.", 600.0, unit="seconds")
    chain_s: NonNegativeFloat = key("Time for the posterior or prior chains of a batch.", 600.0, unit="seconds")
    checkpoint_s: NonNegativeFloat = key("Time in which training waits for a checkpoint.", 1800.0, unit="seconds")


class RayBlock(Block):
    """Training on Ray."""

    num_workers: NonNegative | tuple[Positive, Positive] = key(
        "0: train in this process. N: N workers. [min, max]: as many workers as the cluster has room for at any time.",
        0,
    )
    address: Address | None = key(
        "Address of a running cluster. Without it RAY_ADDRESS is used; without both, Ray is started on this machine.",
        None,
    )
    cpus_per_worker: PositiveFloat = key("CPUs of a worker.", 1.0)
    gpus_per_worker: NonNegative | None = key(
        "GPUs of a worker. Without it: one if `device` is cuda, or if it is auto and the cluster has GPUs.", None
    )
    max_failures: NonNegative = key(
        "Number of losses of workers in a row, without a new checkpoint in between, that a run survives.", 5
    )
    wait_s: PositiveFloat = key("How long the run waits for enough workers.", 1800.0, unit="seconds")
    resize_every_s: PositiveFloat = key(
        "Time between two adaptations of the number of workers, if it is a range.", 60.0, unit="seconds"
    )
    limits: LimitsBlock = key("Time limits of a worker.", LimitsBlock())

    @property
    def least_workers(self) -> int:
        """The fewest workers that the run continues with."""
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
