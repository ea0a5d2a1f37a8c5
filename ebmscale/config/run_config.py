"""The one schema of a run: YAML plus dotted overrides in, a strict value out, saved resolved with the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from ebmscale.address import Address
from ebmscale.config.blocks import (
    DataBlock,
    ModelBlock,
    PosteriorBlock,
    PriorBlock,
    RunBlock,
    StagesBlock,
    StorageBlock,
)
from ebmscale.config.fields import Block, NonNegative, key, keys_that_change
from ebmscale.config.keys import first_problem, known_keys, value_at
from ebmscale.config.overrides import apply_override, set_key
from ebmscale.config.presets import file_of
from ebmscale.config.removed import drop_removed
from ebmscale.config.training_blocks import (
    CheckpointBlock,
    DeepspeedBlock,
    GuardBlock,
    MetricsBlock,
    RayBlock,
    TrainBlock,
)
from ebmscale.documents import load_yaml, read_yaml, write_yaml
from ebmscale.errors import ConfigError

Method = Literal["adaptive", "nce", "tre", "lebm", "gaussian"]
Precision = Literal["auto", "fp32", "bf16"]


class RunConfig(Block):
    """Everything that defines a run: blocks of keys, each with its meaning, default and unit (see `configs/README.md`).

    Lengths of time are in samples. A value is read as an attribute, and cannot be set.

    Example:
        >>> config = load_config("configs/digits.yaml")
        >>> config.train.max_samples
        100000
    """

    run: RunBlock = key("The run's name and seed.")
    method: Method = key(
        "How the prior is learned; the baselines differ in this alone. `adaptive`: stages one after the other. "
        "`nce`: one stage that lasts the whole run. `tre`: `stages.max_stages` ratios at once along a fixed bridge "
        "(Rhodes et al. 2020). `lebm`: one energy by maximum likelihood (Pang et al. 2020). `gaussian`: p_0 itself.",
        "adaptive",
    )
    storage: StorageBlock = key("Where runs are kept.", StorageBlock(), change="circumstance")
    data: DataBlock = key("The data set.")
    model: ModelBlock = key("Latent size and networks.", ModelBlock())
    posterior: PosteriorBlock = key("How latents of an image are inferred.", PosteriorBlock())
    prior: PriorBlock = key("The base density and the chains of the prior.", PriorBlock())
    stages: StagesBlock = key("How ratios are trained and when a stage ends.", StagesBlock())
    train: TrainBlock = key("The budget and the optimisers.")
    checkpoint: CheckpointBlock = key(
        "When checkpoints are written and kept.", CheckpointBlock(), change="circumstance"
    )
    guard: GuardBlock = key("What counts as a bad update.", GuardBlock(), change="resume")
    metrics: MetricsBlock = key("What is written while training.", MetricsBlock(), change="circumstance")
    engine: Literal["auto", "plain", "deepspeed"] = key(
        "What trains the networks. `auto` takes DeepSpeed for several processes.", "auto", change="circumstance"
    )
    deepspeed: DeepspeedBlock = key("The DeepSpeed engine.", DeepspeedBlock(), change="circumstance")
    ray: RayBlock = key("Training on Ray.", RayBlock(), change="circumstance")
    precision: Precision = key(
        "Precision of chains, generator and encoder. `auto` is bf16 if the device of every worker multiplies it faster "
        "than fp32; a run keeps the precision that it began with.",
        "fp32",
    )
    device: Literal["auto", "cpu", "cuda"] = key(
        "`auto` takes a GPU where there is one.", "auto", change="circumstance"
    )
    num_threads: NonNegative = key("Threads of each process; 0 leaves it to torch.", 0, change="circumstance")
    profile: bool = key("Write a trace and a table of where an update's time goes.", False, change="circumstance")

    @property
    def num_live(self) -> int:
        """How many ratios are trained at once and form the current prior; 0 if stages freeze them."""
        return self.most_stages if self.method in ("lebm", "tre") else 0

    @property
    def most_stages(self) -> int:
        """The largest number of ratios that the method's prior can have."""
        return {"gaussian": 0, "nce": 1, "lebm": 1}.get(self.method, self.stages.max_stages)

    @property
    def uses_density(self) -> bool:
        """Whether the prior is learned in stages from samples of p_k as a density."""
        return self.prior.kind == "density" and self.num_live == 0

    @property
    def is_amortised(self) -> bool:
        """Whether posteriors are the encoder's Gaussians, without chain steps after the draw."""
        return self.posterior.start == "encoder" and self.posterior.num_steps == 0

    @property
    def generator_stops(self) -> int:
        """The `samples_seen` after which the generator is not trained."""
        return self.train.generator.stop_samples or self.train.max_samples

    @model_validator(mode="after")
    def _method_fits(self) -> "RunConfig":
        if self.method == "tre" and self.stages.max_stages == 0:
            raise ValueError("stages.max_stages must be above 0 for method tre: it is the number of ratios")
        buffered, least = self.stages.buffer_samples, 10 * self.model.latent_dim
        if self.prior.base == "moments" and not least <= buffered <= self.stages.start_samples:
            raise ValueError(
                f"prior.base: moments is fitted to the buffer: stages.buffer_samples must be at least {least} "
                "(ten times model.latent_dim), and stages.start_samples at least stages.buffer_samples, so that the "
                "buffer is full"
            )
        if self.prior.base == "moments" and self.prior.base_sizes[0] * self.model.latent_dim > buffered:
            raise ValueError(
                f"prior.base_components must be at most {buffered // self.model.latent_dim} (stages.buffer_samples "
                "over model.latent_dim), so that there are posteriors for every component"
            )
        moves = self.generator_stops > self.stages.start_samples
        if moves and self.stages.settle_samples >= self.stages.max_samples:
            raise ValueError("stages.settle_samples must be below max_samples, or no time is left to explore")
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
        least = max(self.stages.batch_size, 2 * streams)
        if self.uses_density and self.most_stages and self.prior.num_particles < least:
            raise ValueError(
                f"prior.num_particles ({self.prior.num_particles}) must be at least {least}: not below "
                "stages.batch_size, or an update would use a particle twice, and two for every stream"
            )
        for name, value in {
            "prior.num_chains": self.prior.num_chains,
            "stages.buffer_samples": self.stages.buffer_samples,
            "stages.evidence_samples": self.stages.evidence_samples,
        }.items():
            if value % streams:
                raise ValueError(f"{name} ({value}) must be a multiple of data.num_streams ({streams})")
        return self

    def dump(self) -> str:
        """The resolved configuration as YAML, without the secrets of addresses."""
        return write_yaml(self.model_dump(mode="json"))

    def with_absolute_addresses(self) -> "RunConfig":
        """The same configuration with absolute addresses, for a process in another working directory."""
        data = {
            name: Address(value).absolute()
            for name in ("url", "source", "cache")
            if (value := getattr(self.data, name)) not in (None, "", "-")
        }
        storage = {"url": self.storage.url.absolute()}
        return self.model_copy(
            update={"data": self.data.model_copy(update=data), "storage": self.storage.model_copy(update=storage)}
        )

    def check_secrets(self, why: str) -> None:
        """Refuses an address with a password or a token, for a use that would show it to others.

        Raises:
            ConfigError: there is one.
        """
        tree = self.model_dump()
        for name in known_keys(RunConfig):
            address = value_at(tree, name)
            if isinstance(address, Address) and address.has_secrets:
                raise ConfigError(f"{name} {address} holds a password or a token, and {why}.")


CIRCUMSTANCES = tuple(keys_that_change(RunConfig, ("circumstance",)))
"""Keys that say where and by what means a run is computed, and not what."""

RESUMABLE = tuple(keys_that_change(RunConfig, ("resume", "circumstance")))
"""Keys that may change between an interruption and the resume; the others define what the run computes."""


def load_config(path: str | Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> RunConfig:
    """Reads the configuration of a run.

    Args:
        path: of a YAML file, or `preset:NAME` for one that comes with the package, such as `preset:digits`.
        overrides: as on the command line, such as `["train.max_samples=20000"]`; they are applied last.
        values: Python values of dotted keys, already of the right types.

    Raises:
        ConfigError: the file is missing or is not YAML, a key is unknown, a value has the wrong type or range.

    Example:
        >>> config = ebmscale.load_config("preset:digits", ["run.name=first", "train.max_samples=20000"])
    """
    tree = load_yaml(file_of(path, ""), f"the configuration {path}", ConfigError)
    return _from_tree(tree, values or {}, overrides, str(path))


def parse_config(text: str | bytes, overrides: Sequence[str] = (), source: str = "configuration") -> RunConfig:
    """`load_config` from the text itself; `source` names it in errors."""
    return _from_tree(read_yaml(text, source, ConfigError), {}, overrides, source)


def config_of(tree: Any, source: str) -> RunConfig:
    """The configuration from its plain values, as `model_dump(mode="json")` gives them; `source` names it in errors.

    Raises:
        ConfigError: a key is unknown or missing, a value has the wrong type or range.
    """
    return _from_tree(tree, {}, (), source)


def with_values(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    """The configuration with other values of dotted keys; `source` names them in errors.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type or range, or they do not go together.
    """
    return _from_tree(config.model_dump(), values, (), source)


def _from_tree(tree: Any, values: Mapping[str, Any], overrides: Sequence[str], source: str) -> RunConfig:
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must hold a mapping of keys, not a {type(tree).__name__}.")
    for name, value in values.items():
        set_key(tree, name, value)
    for override in overrides:
        apply_override(tree, override, RunConfig)
    drop_removed(tree, source)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error, list(known_keys(RunConfig)))}") from None


def changed_keys(old: RunConfig, new: RunConfig, allowed: Sequence[str] = RESUMABLE) -> list[str]:
    """Dotted keys whose values differ and that are not allowed to change: they forbid resuming `old` as `new`.

    A new `precision` and a new `stages.updates_per_batch` of `auto` count as the old ones.
    """
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    if new.precision == "auto":
        after["precision"] = before["precision"]
    if new.stages.updates_per_batch == "auto":
        after["stages"]["updates_per_batch"] = before["stages"]["updates_per_batch"]
    leaves = [name for name in known_keys(RunConfig) if not isinstance(value_at(before, name), dict)]
    return [
        name
        for name in leaves
        if value_at(before, name) != value_at(after, name)
        and not any(name == a or name.startswith(a + ".") for a in allowed)
    ]
