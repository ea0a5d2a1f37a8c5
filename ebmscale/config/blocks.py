"""Parts of the configuration that say what is learned: data, model, chains, stages.

All lengths of time are in samples.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ebmscale.address import Address
from ebmscale.config.keys import check_type

Positive = Annotated[int, Field(gt=0, lt=2**63)]
NonNegative = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Block(BaseModel):
    """A part of the configuration: frozen, unknown keys refused, and no value taken for one of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_other_type(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        check_type(value, cls.model_fields[info.field_name].annotation)
        return value


class RunBlock(Block):
    """Identity of a run; the run lives at `storage.url`/`run.name`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: NonNegative = 0


class AddressBlock(Block):
    """Where files lie: a folder or any fsspec address, and how it is reached.

    For `s3://`: `endpoint_url` of a server other than Amazon's (else AWS_ENDPOINT_URL counts), and `anonymous` for
    public data. A request that fails for a passing reason is sent again up to `retries` times. One that has no complete
    answer after 40 s counts as failed; with all its repetitions it ends after 120 s (both, and the time that its bytes
    take at 200 kB/s).

    Passwords and tokens in an address (`user:password@`, `?sig=...`) are not saved with the run.
    """

    url: Address
    endpoint_url: Address | None = None
    anonymous: bool = False
    retries: NonNegative = 8


class StorageBlock(AddressBlock):
    """Where runs are kept."""

    url: Address = Address("runs")


class HeldOutBlock(Block):
    """A class of the set that training never sees, so that its samples can serve as anomalies; no `label`, no such.

    `label` is the class's name in the set. Protocol `official` trains on the official train part without the class and
    tests on the whole official test part. `pooled` puts all parts together: 80 % of the normal samples are there to
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

    Held-out images are the set's validation part (folders or files called val, valid, validation or dev), whole, where
    it was packed with one. Otherwise they are `validation_fraction` of its train part, chosen by a hash of the keys.
    `cache` is a folder of the machine that reads, for up to `cache_bytes` of what comes from another place. With `flip`
    every training image is mirrored left to right half of the time, which doubles a small set. A run that is resumed
    refuses another data set than it began with, unless `accept_changed` is true.
    """

    format: str | None = None
    source: Address | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    held_out: HeldOutBlock = HeldOutBlock()
    num_streams: Positive = 64
    shuffle_window: Positive = 512
    verify: Literal["sha256", "size", "none"] = "sha256"
    max_damaged: NonNegative = 10
    flip: bool = False
    cache: str | None = None
    cache_bytes: Positive = 10_000_000_000
    accept_changed: bool = False


class ModelBlock(Block):
    """Latent size, networks, and the standard deviation `sigma` of p(x|z) for pixels in [-1, 1].

    `form` names a generator's form where an image size has several (see `networks.architectures`).
    `ratio_components` adds a mixture of so many terms, each of rank `ratio_rank`, to the ratio network (see
    `networks.ratio_net.MixtureHead`). `ratio_squares` lets its second layer see the first one's units and their
    squares (see `networks.ratio_net`).
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
    that strength (see `stages.tilt`).

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
