"""Parts of the configuration that say what is learned: data, model, chains, stages.

All lengths of time are in samples.
"""

from typing import Any, Literal

from pydantic import field_validator, model_validator

from ebmscale.address import Address
from ebmscale.config.fields import Block, Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFloat, key


class RunBlock(Block):
    """Identity of a run. The run lives at `storage.url`/`run.name`."""

    name: str = key("Name of the run, and of its folder.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: NonNegative = key("Seed of everything random.", 0)
    start_from: Address | None = key(
        "The folder or address of another run. A run without a checkpoint begins with the generator and the encoder "
        "of that one, as they were before its ratios began. Both must agree in all but the method, `prior`, `stages`, "
        "the ratio network and its optimizer; so several priors need one training of the generator. Its server and "
        "its credentials are those of `storage`.",
        None,
        change="circumstance",
    )


class AddressBlock(Block):
    """Where files lie: a folder or any fsspec address, and how it is reached.

    A request without a complete answer after 40 s has failed. With all its repetitions it ends after 120 s. Both times
    grow by the time that the request's bytes take at 200 kB/s.
    """

    url: Address = key(
        "A folder, or an address such as `s3://bucket/path`. Passwords and tokens in it are not saved with the run.",
        change="circumstance",
    )
    endpoint_url: Address | None = key(
        "For `s3://`: a server other than Amazon's. Without it AWS_ENDPOINT_URL is used.", None, change="circumstance"
    )
    anonymous: bool = key("For `s3://`: read public data without credentials.", False, change="circumstance")
    retries: NonNegative = key(
        "How often a request that failed for a temporary reason is repeated.", 8, change="circumstance"
    )


class StorageBlock(AddressBlock):
    """Where runs are kept."""

    url: Address = key("Folder or address below which runs are kept.", Address("runs"), change="circumstance")


class HeldOutBlock(Block):
    """A class of the set that training never sees, so that its samples can serve as anomalies."""

    label: str | None = key("Name of the class in the set. Without it no class is held out.", None)
    protocol: Literal["official", "pooled"] = key(
        "`official` trains on the official train part without the class, and tests on the whole official test part. "
        "`pooled` puts all parts together. 80 % of the normal samples are for training and validation. The test split "
        "is the other 20 % and all samples of the class.",
        "official",
    )

    @field_validator("label", mode="before")
    @classmethod
    def _is_a_name(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value  # digits, which YAML reads as numbers


class DataBlock(AddressBlock):
    """The packed data set."""

    format: str | None = key(
        "Format of `source` (see `ebmscale pack`). If it is given and `url` holds no set, the set is packed first.",
        None,
        change="circumstance",
    )
    source: Address | None = key("What to pack: files or a folder.", None, change="circumstance")
    validation_fraction: float = key(
        "Share of the train part that is held out for decisions, chosen by a hash of the keys. A set that was packed "
        "with a validation part (folders or files called val, valid, validation or dev) holds out that part instead.",
        0.05,
        gt=0,
        lt=1,
    )
    held_out: HeldOutBlock = key("A class that is held out as anomalies.", HeldOutBlock())
    num_streams: Positive = key(
        "Number of streams of data and noise, which the workers divide among them. It is also the largest number of "
        "workers. A worker owns whole streams, so the data order does not depend on the number of workers.",
        64,
    )
    shuffle_window: Positive = key("The next sample of a stream is drawn from this many samples.", 512, unit="samples")
    verify: Literal["sha256", "size", "none"] = key(
        "What is checked for every shard when a run starts: nothing, its size, or its sha256. For the sha256 the "
        "whole set is read once. In any case each sample is compared with its checksum when it is read.",
        "none",
        change="circumstance",
    )
    max_damaged: NonNegative = key(
        "Number of damaged samples that a worker may skip. If there are more, the run stops.", 10, change="circumstance"
    )
    flip: bool = key("Mirror training images left to right, each time with probability 1/2.", False)
    cache: str | None = key("Local folder that caches data of a remote storage.", None, change="circumstance")
    cache_bytes: Positive = key("Largest size of `cache`.", 10_000_000_000, unit="bytes", change="circumstance")
    accept_changed: bool = key(
        "Whether a run may resume with a data set other than the one that it began with. The same set at another "
        "address is always accepted.",
        False,
        change="circumstance",
    )


class ChainBlock(Block):
    """Langevin steps: z <- z + (step_size^2 / 2) score / temperature + step_size * noise_scale * noise."""

    num_steps: NonNegative = key("Steps of a chain.", mutable=True)
    step_size: PositiveFloat = key("Size of a step.", mutable=True)
    noise_scale: NonNegativeFloat = key("Factor of the noise; 1 is Langevin dynamics.", 1.0, mutable=True)
    temperature: PositiveFloat = key("Divides the score; 1 is Langevin dynamics.", 1.0, mutable=True)


class PosteriorBlock(ChainBlock):
    """How latents of an image are inferred."""

    start: Literal["base", "encoder"] = key(
        "Where a posterior chain starts: at a draw of the base density p_0, or of an encoder that is trained with the "
        "generator.",
        "base",
    )
    kernel: Literal["auto", "plain", "batch_inner", "compiled"] = key(
        "Form of the generator in the chain (see `kernels/forms.py`). `auto` measures which one is the fastest.",
        "auto",
        change="circumstance",
    )
    num_steps: NonNegative = key("Number of Langevin steps. 0: the latent is the encoder's draw.", 20, mutable=True)
    step_size: PositiveFloat = key("Size of a step.", 0.1, mutable=True)

    @model_validator(mode="after")
    def _infers_something(self) -> "PosteriorBlock":
        if self.start != "encoder" and self.num_steps == 0:
            raise ValueError("num_steps must be above 0 unless the chain starts at an encoder")
        return self


AUTO_COMPONENTS = (1, 2, 4, 10, 30, 60)


class PriorBlock(ChainBlock):
    """The base density p_0, and the chains of the prior p_{k-1}."""

    base: Literal["standard", "moments"] = key(
        "`standard`: p_0 is N(0, I). `moments`: at `stages.start_samples` p_0 becomes the Gaussian, or the mixture of "
        "Gaussians, that fits the posterior latents. This is the first density ratio in closed form.",
        "standard",
    )
    base_components: Positive | Literal["auto"] | tuple[Positive, ...] = key(
        "Number of Gaussians in the mixture that `moments` fits. Of a list, such as `[1, 10, 30]`, the run takes the "
        "number under which the posteriors of held-out images are likeliest. `auto` is `[1, 2, 4, 10, 30, 60]`.",
        1,
    )
    base_fits: Positive = key(
        "Number of mixtures that are fitted, each from other centres. p_0 is their mean, which averages their errors. "
        "Where held-out posteriors choose `base_components`, they choose the number of mixtures too, up to this.",
        1,
    )
    kind: Literal["density", "persistent", "short_run"] = key(
        "Where a ratio's samples of p_{k-1} come from. `density`: exact or weighted draws of p_0, or particles; p_k is "
        "then a density. `persistent`: Langevin chains of `num_steps` that continue from batch to batch. `short_run`: "
        "chains that start from p_0 at every batch, as in the paper. With chains, p_k is the distribution of their "
        "ends, and its log density is not exact.",
        "density",
    )
    num_particles: int = key(
        "For `density`: number of particles of p_{k-1} that train a ratio, rounded down to a multiple of "
        "`data.num_streams`. Half as many more determine its strength, and half as many measure its evidence.",
        8192,
        ge=64,
    )
    num_steps: Positive = key("Number of steps of the chains for every batch.", 5, mutable=True)
    step_size: PositiveFloat = key("Size of a step.", 0.2, mutable=True)
    num_chains: Positive = key(
        "Number of chains on which ratios are trained, over all workers; not for `density`.", 512
    )
    equilibrate: Literal["langevin", "smc", "tilt"] = key(
        "How chains reach a new prior; not for `density`. `langevin`: by steps. `smc`: by resampling and moves along a "
        "sequence from the old prior to the new one, then by steps. `tilt`: by steps in which the strength of the new "
        "ratio grows from 0. The ratio is frozen at the strength at which its mean over the chains is its mean over "
        "held-out posteriors.",
        "langevin",
    )
    equilibrate_steps: NonNegative = key("Number of Langevin steps at a new prior.", 100, mutable=True)
    sample_steps: Positive = key("Number of Langevin steps for each stage, when samples are drawn by chains.", 100)

    @model_validator(mode="after")
    def _tilts_in_steps(self) -> "PriorBlock":
        if self.equilibrate == "tilt" and self.equilibrate_steps == 0:
            raise ValueError("equilibrate: tilt needs equilibrate_steps above 0")
        return self

    @property
    def base_sizes(self) -> tuple[int, ...]:
        """The numbers of Gaussians that `base_components` allows, rising."""
        if self.base_components == "auto":
            return AUTO_COMPONENTS
        return (self.base_components,) if isinstance(self.base_components, int) else self.base_components

    @property
    def chooses_base(self) -> bool:
        """Whether held-out posteriors choose the number of Gaussians."""
        return self.base == "moments" and not isinstance(self.base_components, int)

    @model_validator(mode="after")
    def _fits_mixtures(self) -> "PriorBlock":
        if self.base_fits > 1 and self.base_components == 1:
            raise ValueError("base_fits above 1 needs base_components above 1")
        if list(self.base_sizes) != sorted(set(self.base_sizes)) or not self.base_sizes:
            raise ValueError("base_components must be a number, auto, or a list of rising numbers such as [1, 10, 30]")
        return self


class StagesBlock(Block):
    """How a ratio is trained and when its stage ends (see `density/schedule.py`)."""

    start_samples: NonNegative = key("Start of the ratios. Before it the prior is p_0.", 0, unit="samples")
    max_stages: NonNegative = key("Largest number of stages, K.", 3)
    magnification: PositiveFloat = key("M of N2CE: the weight of the noise samples. 1 is NCE.", 1.0)
    updates_per_batch: Positive | Literal["auto"] = key(
        "Updates of the ratio network for every batch of images. `auto` is 8 while the generator trains. Where it "
        "stands still and an encoder alone infers the latents, the ratio gets three quarters of the operations.",
        "auto",
        mutable=True,
    )
    batch_size: Positive = key(
        "Number of posterior latents in an update. There are as many prior latents.", 256, mutable=True
    )
    buffer_samples: Positive = key(
        "Size of the buffer of recent posterior latents, from which the updates draw.", 3200, unit="samples"
    )
    min_samples: Positive = key("Shortest time of a stage at the full learning rate.", 10_000, unit="samples")
    max_samples: Positive = key(
        "Longest time of a stage. Where the generator stands still, a stage lasts as long as it pays, within these two "
        "bounds. In its last three quarters the learning rate falls.",
        50_000,
        unit="samples",
    )
    settle_samples: NonNegative = key(
        "While the generator trains: time at the end of a stage in which the rate falls to zero along a cosine.",
        10_000,
        unit="samples",
    )
    patience: Positive = key(
        "While the generator trains: after this many measurements without an improvement a stage settles.", 3
    )
    min_improvement: NonNegativeFloat = key(
        "Smallest fall of the held-out loss that counts as an improvement.", 1e-3, unit="nats"
    )
    significance: PositiveFloat = key(
        "A stage is kept if its KL bound, or the fall of its held-out loss below chance, exceeds this many standard "
        "errors.",
        2.0,
    )
    auc_drop: PositiveFloat = key("If the AUC falls by more than this, the stage has collapsed.", 0.2)
    min_ess: Fraction = key(
        "If the effective sample size, as a share, is below this, the stage has collapsed. 0: never.", 0.0
    )
    max_rollbacks: NonNegative = key("Number of times that a stage may restart after a collapse.", 3)
    evidence_every: Positive = key("Time between two measurements of the evidence.", 5_000, unit="samples")
    evidence_samples: Positive = key("Number of held-out images, and of held-out chains, in a measurement.", 512)
