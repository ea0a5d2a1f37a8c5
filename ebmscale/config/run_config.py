"""The schema of a run's configuration. It is checked strictly, and the run saves it with all defaults filled in."""

import math
from typing import Literal

from pydantic import model_validator

from ebmscale.address import Address
from ebmscale.config.blocks import (
    DataBlock,
    PosteriorBlock,
    PriorBlock,
    RunBlock,
    StagesBlock,
    StorageBlock,
)
from ebmscale.config.fields import Block, NonNegative, key, keys_that_change
from ebmscale.config.keys import known_keys, value_at
from ebmscale.config.model_blocks import ModelBlock
from ebmscale.config.training_blocks import (
    CheckpointBlock,
    DeepspeedBlock,
    GuardBlock,
    MetricsBlock,
    RayBlock,
    TrainBlock,
)
from ebmscale.documents import write_yaml
from ebmscale.errors import ConfigError

Method = Literal["adaptive", "nce", "tre", "lebm", "gaussian"]
Precision = Literal["auto", "fp32", "bf16"]


class RunConfig(Block):
    """Everything that defines a run: blocks of keys, each with its meaning, default and unit (see `configs/README.md`).

    Lengths of time are in samples. Values are attributes and are read-only.

    Example:
        >>> config = load_config("configs/digits.yaml")
        >>> config.train.max_samples
        100000
    """

    run: RunBlock = key("The run's name and seed.")
    method: Method = key(
        "How the prior is learned. The baselines differ only in this. `adaptive`: stages one after the other. "
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
        "The engine that trains the networks. `auto` takes DeepSpeed for several processes.",
        "auto",
        change="circumstance",
    )
    deepspeed: DeepspeedBlock = key("The DeepSpeed engine.", DeepspeedBlock(), change="circumstance")
    ray: RayBlock = key("Training on Ray.", RayBlock(), change="circumstance")
    precision: Precision = key(
        "Precision of chains, generator and encoder. `auto` is bf16 if every worker's device multiplies it faster than "
        "fp32. A run keeps the precision with which it began.",
        "fp32",
    )
    device: Literal["auto", "cpu", "cuda"] = key("`auto` takes a GPU if there is one.", "auto", change="circumstance")
    num_threads: NonNegative = key("Threads of each process. 0: torch decides.", 0, change="circumstance")
    profile: bool = key(
        "Whether to write a trace and a table of the time of each part of an update.", False, change="circumstance"
    )

    @property
    def num_live(self) -> int:
        """How many ratios are trained at once and form the current prior; 0 if stages freeze them."""
        return self.most_stages if self.method in ("lebm", "tre") else 0

    @property
    def most_stages(self) -> int:
        """The largest number of ratios that the method's prior can have."""
        return {"gaussian": 0, "nce": 1, "lebm": 1}.get(self.method, self.stages.max_stages)

    @property
    def prior_begins(self) -> float:
        """The `samples_seen` at which the prior begins to be learned; infinity where it stays N(0, I)."""
        if self.most_stages == 0 and self.prior.base == "standard":
            return math.inf
        return -(-self.stages.start_samples // self.train.batch_size) * self.train.batch_size

    @property
    def has_two_stages(self) -> bool:
        """Whether the prior is learned after generator and encoder have stopped."""
        begins = self.prior_begins
        return self.networks_train and self.generator_stops <= begins < self.train.max_samples

    @property
    def most_checkpoints(self) -> int:
        """The largest number of checkpoints that are kept."""
        rule = self.checkpoint
        of_intervals = self.train.max_samples // max(rule.keep_every, rule.every_samples) if rule.keep_every else 0
        return rule.keep_last + rule.keep_best + of_intervals + self.has_two_stages

    @property
    def uses_density(self) -> bool:
        """Whether the prior is learned in stages from samples of p_k as a density."""
        return self.prior.kind == "density" and self.num_live == 0

    @property
    def uses_encoder(self) -> bool:
        """Whether posteriors begin at an encoder."""
        return self.posterior.start == "encoder"

    @property
    def is_amortised(self) -> bool:
        """Whether posteriors are the encoder's Gaussians, without chain steps after the draw."""
        return self.uses_encoder and self.posterior.num_steps == 0

    @property
    def networks_train(self) -> bool:
        """Whether training ever changes the generator or the encoder."""
        if self.model.is_identity:
            return False
        return self.model.generator.train or (self.uses_encoder and self.model.encoder.train)

    @property
    def averages_weights(self) -> bool:
        """Whether a moving average of generator and encoder is kept."""
        return self.networks_train and self.train.generator.ema_samples > 0

    @property
    def generator_stops(self) -> int:
        """The `samples_seen` after which generator and encoder are not trained; 0 where they never are."""
        return (self.train.generator.stop_samples or self.train.max_samples) if self.networks_train else 0

    @model_validator(mode="after")
    def _base_can_be_fitted(self) -> "RunConfig":
        if self.prior.base != "moments":
            return self
        buffered, least = self.stages.buffer_samples, 10 * self.model.latent_dim
        if buffered < least:
            raise ValueError(
                f"stages.buffer_samples must be at least {least} (ten times model.latent_dim), because "
                "prior.base: moments is fitted to the buffer"
            )
        if self.stages.start_samples < buffered:
            raise ValueError(
                f"stages.start_samples must be at least stages.buffer_samples ({buffered}), so that the buffer is full "
                "when prior.base: moments is fitted to it"
            )
        if self.prior.base_sizes[0] * self.model.latent_dim > buffered:
            raise ValueError(
                f"prior.base_components must be at most {buffered // self.model.latent_dim} (stages.buffer_samples "
                "over model.latent_dim), so that there are posteriors for every component"
            )
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> "RunConfig":
        if self.method == "tre" and self.stages.max_stages == 0:
            raise ValueError("stages.max_stages must be above 0 for method tre: it is the number of ratios")
        moves = self.generator_stops > self.stages.start_samples
        if moves and self.stages.settle_samples >= self.stages.max_samples:
            raise ValueError("stages.settle_samples must be below max_samples, or no time is left to explore")
        if self.stages.start_samples >= self.train.max_samples:
            raise ValueError("stages.start_samples must be below train.max_samples, or no ratio is ever trained")
        return self

    @model_validator(mode="after")
    def _sigma_can_be_learned(self) -> "RunConfig":
        if self.model.sigma == "auto" and not self.networks_train:
            raise ValueError(
                "model.sigma: auto is learned while a generator trains, but none trains here; give a number"
            )
        return self

    @model_validator(mode="after")
    def _identity_fits(self) -> "RunConfig":
        if not self.model.is_identity:
            return self
        if not self.is_amortised:
            raise ValueError(
                "model.generator.form: identity takes latents as they are: set posterior.start: encoder and "
                "posterior.num_steps: 0"
            )
        if self.precision == "bf16":
            raise ValueError("model.generator.form: identity needs precision: fp32")
        if self.data.flip:
            raise ValueError("data.flip mirrors images; leave it out where the samples are latents")
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
                f"prior.num_particles ({self.prior.num_particles}) must be at least {least}: at least "
                "stages.batch_size, so that no update uses a particle twice, and at least two for every stream"
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
        start_from = self.run.start_from
        run = {"start_from": start_from.absolute()} if start_from is not None else {}
        networks = {
            name: block.model_copy(update={"weights": block.weights.absolute()})
            for name in ("generator", "encoder")
            if (block := getattr(self.model, name)).weights is not None
        }
        return self.model_copy(
            update={
                "run": self.run.model_copy(update=run),
                "data": self.data.model_copy(update=data),
                "storage": self.storage.model_copy(update=storage),
                "model": self.model.model_copy(update=networks),
            }
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
