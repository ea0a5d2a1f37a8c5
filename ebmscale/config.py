"""RunConfig: the one schema of a run. YAML plus dotted overrides in, a strict value out, saved resolved with the run.

All lengths of time are in samples; `train.batch_size` is global, over all workers.
"""

import difflib
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ebmscale.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Block(BaseModel):
    """A part of the configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunBlock(Block):
    """Identity of a run; the run lives at `storage.url`/`run.name`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: NonNegative = 0


class AddressBlock(Block):
    """Where files lie: a folder or any fsspec address, and how it is reached.

    For `s3://`: `endpoint_url` of a server other than Amazon's (else AWS_ENDPOINT_URL counts), and `anonymous` for
    public data. A request that fails for a passing reason is sent again up to `retries` times.
    """

    url: str
    endpoint_url: str | None = None
    anonymous: bool = False
    retries: NonNegative = 8


class StorageBlock(AddressBlock):
    """Where runs are kept."""

    url: str = "runs"


class HeldOutBlock(Block):
    """A class of the set that training never sees, so that its samples can serve as anomalies; no `label`, no such.

    `label` is the class's name in the set. Protocol `official` trains on the official train part without the class and
    tests on the whole official test part. `pooled` puts both parts together: 80 % of the normal samples are there to
    train on (validation is taken from them), the other 20 % and every sample of the class are the test split.
    """

    label: str | None = None
    protocol: Literal["official", "pooled"] = "official"

    @field_validator("label", mode="before")
    @classmethod
    def _is_a_name(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value  # digits, which YAML reads as numbers


class DataBlock(AddressBlock):
    """The packed data set. With `format`, an empty `url` is packed first from `source`.

    `cache` is a folder of the machine that reads, for up to `cache_bytes` of what comes from another place. With `flip`
    every training image is mirrored left to right half of the time, which doubles a small set.
    """

    format: str | None = None
    source: str | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    held_out: HeldOutBlock = HeldOutBlock()
    num_streams: Positive = 64
    shuffle_window: Positive = 512
    verify: Literal["sha256", "size", "none"] = "sha256"
    max_damaged: NonNegative = 10
    flip: bool = False
    cache: str | None = None
    cache_bytes: Positive = 10_000_000_000


class ModelBlock(Block):
    """Latent size, networks, and the standard deviation `sigma` of p(x|z) for pixels in [-1, 1].

    `form` names a generator's form where an image size has several (see `models.forms`). `ratio_components` adds a
    mixture of so many terms, each of rank `ratio_rank`, to the ratio network (see `models.ratio_net.MixtureHead`);
    `ratio_squares` lets its second layer see the first one's units and their squares (see `models.ratio_net`).
    """

    latent_dim: Positive = 16
    form: str | None = None
    generator_width: Positive = 32
    sigma: PositiveFloat = 0.3
    encoder_width: Positive = 32
    ratio_hidden: tuple[Positive, ...] = (200, 200)
    ratio_activation: Literal["silu", "leaky_relu", "gelu"] = "silu"
    ratio_components: NonNegative = 0
    ratio_rank: Positive = 8
    ratio_squares: bool = False


class ChainBlock(Block):
    """Langevin settings: z <- z + (step_size^2 / 2) score / temperature + step_size * noise_scale * noise."""

    num_steps: NonNegative
    step_size: PositiveFloat
    noise_scale: Annotated[float, Field(ge=0)] = 1.0
    temperature: PositiveFloat = 1.0


class PosteriorBlock(ChainBlock):
    """Posterior chain: started from the `base` density, an `encoder` (no steps = the encoder alone), or a `memory`.

    The `memory` holds where the chain of a training image ended, and the next one of that image goes on there by
    `num_steps`; images that come the first time, held-out and new ones start from the base density and take
    `first_steps`. It has room for `memory_bytes` of latents; the images beyond always start from the base density.

    With a `plateau` above 0 the chains of training images that are not remembered take as many steps as held-out ones
    need to come within this share of their whole way in log density (see `density.langevin.steps_to_plateau`).
    `kernel` is the generator's form in the chain (see `kernels.forms`); `auto` takes the fastest of this machine.
    """

    start: Literal["base", "encoder", "memory"] = "base"
    kernel: Literal["auto", "plain", "batch_inner", "compiled"] = "auto"
    num_steps: NonNegative = 20
    step_size: PositiveFloat = 0.1
    first_steps: Positive | None = None
    memory_bytes: Positive = 2**28
    plateau: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _infers_something(self) -> "PosteriorBlock":
        if self.start != "encoder" and self.num_steps == 0:
            raise ValueError("num_steps must be above 0 unless the chain starts at an encoder")
        if (self.start == "memory") != (self.first_steps is not None):
            raise ValueError("first_steps goes with start: memory, and start: memory needs first_steps")
        return self

    @property
    def new_steps(self) -> int:
        """Steps of the chain of an image that is not remembered."""
        return self.num_steps if self.first_steps is None else self.first_steps


class PriorBlock(ChainBlock):
    """Prior chains of p_{k-1}: `persistent` ones move on by num_steps a batch, `short_run` ones restart from p_0.

    A new stage brings persistent chains to the new prior by equilibrate_steps of `langevin`, or by `smc`: resampled and
    moved along rungs from the old prior to the new one, then that many steps. By `tilt` the new ratio is made stronger
    in the course of these steps, from 0 on, until chains have as high a ratio as held-out posteriors, and is frozen at
    that strength (see `training.tilt`).

    With base `moments`, p_0 is, from where the ratios begin, the Gaussian with the mean and covariance of the posterior
    latents, or a mixture of `base_components` Gaussians that is fitted to them: the first density ratio in closed form
    (see `density.bases.MomentBase`). With `base_fits` it is the mean of so many mixtures, each fitted from centres of
    its own, which evens out what one fit gets wrong. Before, and with `standard`, it is N(0, I).
    """

    base: Literal["standard", "moments"] = "standard"
    base_components: Positive = 1
    base_fits: Positive = 1
    kind: Literal["persistent", "short_run"] = "persistent"
    num_steps: Positive = 5
    step_size: PositiveFloat = 0.2
    num_chains: Positive = 512
    equilibrate: Literal["langevin", "smc", "tilt"] = "langevin"
    equilibrate_steps: NonNegative = 100
    sample_steps: Positive = 100

    @model_validator(mode="after")
    def _tilts_in_steps(self) -> "PriorBlock":
        if self.equilibrate == "tilt" and self.equilibrate_steps == 0:
            raise ValueError("equilibrate: tilt needs equilibrate_steps above 0")
        return self

    @model_validator(mode="after")
    def _fits_mixtures(self) -> "PriorBlock":
        if self.base_fits > 1 and self.base_components == 1:
            raise ValueError("base_fits above 1 needs base_components above 1: one Gaussian is fitted in one way only")
        return self


class StagesBlock(Block):
    """How a ratio is trained and when its stage moves on (see `density.schedule.Criteria`).

    Ratios are trained from `start_samples` on; before, the prior is p_0.
    """

    start_samples: NonNegative = 0
    max_stages: NonNegative = 3
    loss: Literal["nce", "n2ce"] = "nce"
    magnification: PositiveFloat = 1.0
    penalty: Annotated[float, Field(ge=0)] = 0.0
    updates_per_batch: Positive = 8
    batch_size: Positive = 256
    buffer_samples: Positive = 3200
    min_samples: Positive = 10_000
    max_samples: Positive = 50_000
    settle_samples: NonNegative = 10_000
    patience: Positive = 3
    min_improvement: Annotated[float, Field(ge=0)] = 1e-3
    significance: PositiveFloat = 2.0
    auc_drop: PositiveFloat = 0.2
    min_ess: Fraction = 0.0
    max_rollbacks: NonNegative = 3
    evidence_every: Positive = 5_000
    evidence_samples: Positive = 512

    @model_validator(mode="after")
    def _fits(self) -> "StagesBlock":
        if self.settle_samples >= self.max_samples:
            raise ValueError("settle_samples must be below max_samples, or no time is left to explore")
        if self.loss == "nce" and self.magnification != 1.0:
            raise ValueError("magnification belongs to loss n2ce; with nce it is 1")
        return self


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
    address: str | None = None
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


Method = Literal["adaptive", "nce", "tre", "lebm", "gaussian"]
Precision = Literal["auto", "fp32", "bf16"]


class RunConfig(Block):
    """Everything that defines a run. `num_threads` is for each process; 0 leaves it to torch.

    `method` says how the prior is learned, and is all that the baselines differ in: `adaptive`, stages one after the
    other; `nce`, one stage that lasts the whole run; `tre`, `stages.max_stages` ratios at once along a fixed bridge
    (Rhodes et al. 2020); `lebm`, one energy by maximum likelihood (Pang et al. 2020); `gaussian`, p_0 itself.

    `precision` `auto` is bf16 where the device of every worker multiplies it faster than fp32, else fp32; a run keeps
    what it began with.

    `profile` writes a trace and a table of where an update's time goes (see `training.profile`).
    """

    run: RunBlock
    method: Method = "adaptive"
    storage: StorageBlock = StorageBlock()
    data: DataBlock
    model: ModelBlock = ModelBlock()
    posterior: PosteriorBlock = PosteriorBlock()
    prior: PriorBlock = PriorBlock()
    stages: StagesBlock = StagesBlock()
    train: TrainBlock
    checkpoint: CheckpointBlock = CheckpointBlock()
    guard: GuardBlock = GuardBlock()
    metrics: MetricsBlock = MetricsBlock()
    engine: Literal["auto", "plain", "deepspeed"] = "auto"
    deepspeed: DeepspeedBlock = DeepspeedBlock()
    ray: RayBlock = RayBlock()
    precision: Precision = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: NonNegative = 0
    profile: bool = False

    @property
    def num_live(self) -> int:
        """How many ratios are trained at once and make the prior as they are now; 0 where stages freeze them."""
        return self.most_stages if self.method in ("lebm", "tre") else 0

    @property
    def most_stages(self) -> int:
        """The most ratios that the method's prior can come to have."""
        return {"gaussian": 0, "nce": 1, "lebm": 1}.get(self.method, self.stages.max_stages)

    @property
    def is_amortised(self) -> bool:
        """Whether posteriors are the encoder's Gaussians, and no chain goes on from a draw of them."""
        return self.posterior.start == "encoder" and self.posterior.num_steps == 0

    @property
    def generator_stops(self) -> int:
        """The `samples_seen` from which on the generator stays as it is."""
        return self.train.generator.stop_samples or self.train.max_samples

    @model_validator(mode="after")
    def _method_fits(self) -> "RunConfig":
        if self.method == "tre" and self.stages.max_stages == 0:
            raise ValueError("stages.max_stages must be above 0 for method tre: it is the number of ratios")
        if self.data.flip and self.posterior.start == "memory":
            raise ValueError(
                "data.flip does not go with posterior.start: memory, whose latents are of unmirrored images"
            )
        buffered, least = self.stages.buffer_samples, 10 * self.model.latent_dim
        if self.prior.base == "moments" and not least <= buffered <= self.stages.start_samples:
            raise ValueError(
                f"prior.base: moments takes them from the buffer: stages.buffer_samples must be at least {least} "
                "(ten times model.latent_dim), and stages.start_samples no less than that, so that it is full"
            )
        if self.prior.base == "moments" and self.prior.base_components * self.model.latent_dim > buffered:
            raise ValueError(
                f"prior.base_components must be at most {buffered // self.model.latent_dim} (stages.buffer_samples "
                "over model.latent_dim), so that every component has posteriors to be fitted to"
            )
        if self.stages.start_samples >= self.train.max_samples:
            raise ValueError("stages.start_samples must be below train.max_samples, or no ratio is ever trained")
        return self

    @model_validator(mode="after")
    def _streams_fit(self) -> "RunConfig":
        streams = self.data.num_streams
        if self.train.batch_size < streams:
            raise ValueError(
                f"train.batch_size ({self.train.batch_size}) must not be below data.num_streams ({streams}): "
                "every stream gives at least one sample to a batch"
            )
        for key, value in {
            "prior.num_chains": self.prior.num_chains,
            "stages.buffer_samples": self.stages.buffer_samples,
            "stages.evidence_samples": self.stages.evidence_samples,
        }.items():
            if value % streams:
                raise ValueError(f"{key} ({value}) must be a multiple of data.num_streams ({streams})")
        return self

    def dump(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


CIRCUMSTANCES = (
    *("checkpoint", "metrics", "engine", "deepspeed", "device", "num_threads", "storage", "ray", "profile"),
    *("data.url", "data.endpoint_url", "data.anonymous", "data.retries", "data.format", "data.source"),
    *("posterior.kernel", "data.verify", "data.max_damaged", "data.cache", "data.cache_bytes"),
)
"""Keys that say where and by what means a run is computed, and not what."""

RESUMABLE = ("train.max_samples", "train.generator.rate", "train.ratio.rate", "guard", *CIRCUMSTANCES)
"""Keys that may change between an interruption and the resume; the others define what the run computes."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file and applies `key=value` overrides (dotted keys, YAML values).

    Raises:
        ConfigError: the file is missing or is not YAML, a key is unknown, a value has the wrong type or range.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not a text file; give a YAML file in UTF-8.") from None
    return parse_config(text, overrides, source=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), source: str = "configuration") -> RunConfig:
    """`load_config` from the text itself; `source` names it in errors."""
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must hold a mapping of keys, not a {type(tree).__name__}.")
    for override in overrides:
        _apply(tree, override)
    return _validated(tree, source)


def with_values(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    """The configuration with other values of dotted keys; `source` names them in errors.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type or range, or they do not go together.
    """
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return _validated(tree, source)


def _validated(tree: dict[str, Any], source: str) -> RunConfig:
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error, list(known_keys(RunConfig)))}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    """Sets one dotted key of the tree."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"cannot read the override '{override}': write it as key=value, e.g. train.batch_size=64.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of the override '{override}' is not valid YAML.") from None
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"the override '{override}' needs {parent} to hold keys, but it holds a value.")
        node = child
    node[last] = value


def first_problem(error: ValidationError, known: Sequence[str]) -> str:
    """A sentence on the first problem found in a file whose keys are `known` ones."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        match, blocks = nearest_key(key, known), dict.fromkeys(name.partition(".")[0] for name in known)
        hint = f"did you mean {match}?" if match else f"known keys start with {', '.join(blocks)}."
        return f"unknown key {key}; {hint}"
    if problem["type"] == "missing":
        return f"the key {key} is missing and has no default; add it."
    if key == "precision":
        return f"precision {problem['input']} is not offered: fp16 overflows and has no CPU kernels; use bf16 or fp32."
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if problem["type"] == "value_error" else f", but it is {problem['input']!r}"
    return f"{key}: {message}{given}." if key else f"{message}."


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that looks most like this one, or has nearly its last name; None where none does."""
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if match:
        return match[0]
    named = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}  # right name, wrong block
    match = difflib.get_close_matches(key.rsplit(".", 1)[-1], named, n=1)
    return named[match[0]] if match else None


def known_keys(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, blocks and leaves."""
    for name, field in block.model_fields.items():
        yield prefix + name
        for kind in _alternatives(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from known_keys(kind, f"{prefix}{name}.")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def changed_keys(old: RunConfig, new: RunConfig, allowed: Sequence[str] = RESUMABLE) -> list[str]:
    """Dotted keys whose values differ, but for the allowed ones: those that forbid resuming `old` as `new`.

    A `precision` of `auto` is the old one, whatever that is.
    """
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    if new.precision == "auto":
        after["precision"] = before["precision"]
    leaves = [key for key in known_keys(RunConfig) if not isinstance(value_at(before, key), dict)]
    return [
        key
        for key in leaves
        if value_at(before, key) != value_at(after, key)
        and not any(key == a or key.startswith(a + ".") for a in allowed)
    ]


def value_at(tree: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        tree = tree[part]
    return tree
