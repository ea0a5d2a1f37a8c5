"""Parts of the configuration that say what the networks are: this package's by form, or a user's own by class."""

import math
from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from ebmscale.address import Address
from ebmscale.config.fields import Block, NonNegative, Positive, PositiveFloat, key


class NetworkBlock(Block):
    """A network: one of this package's, or a class of one's own."""

    model_config = ConfigDict(populate_by_name=True)

    class_path: str | None = key(
        "A network of your own as `module:Class`. The module is found from the working directory.",
        None,
        alias="class",
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$",
    )
    args: dict[str, Any] = key("Keyword arguments of `class`.", {})


class TrainableBlock(NetworkBlock):
    """A network that may come with weights."""

    weights: Address | None = key(
        "File of the first weights: safetensors, or a state dict of torch. Without it they are random.",
        None,
        change="circumstance",
    )
    train: bool = key("Whether training changes the network.", True)


class GeneratorBlock(TrainableBlock):
    """The generator: latents (B, *latent_shape) to samples (B, ...)."""

    form: str | None = key(
        "Architecture of generator and encoder. `residual`: residual blocks, for square images of 8 to 256 pixels. "
        "Other names are transposed convolutions of one image size (see `networks/architectures.py`). The default is "
        "the first of these for the image size, and `residual` if there is none. `identity`: the samples are latents "
        "themselves, and there is nothing to generate.",
        None,
    )
    top: NonNegative = key(
        "With two layers of latents, the number of coordinates of the upper one, which come first in the latent (see "
        "`networks/two_layers.py`). 0: one layer.",
        0,
    )
    width: Positive = key("Width: channels of its last hidden layer.", 32, unit="channels")


class EncoderBlock(TrainableBlock):
    """The encoder, where there is one: samples (B, ...) to mean and log_std, (B, *latent_shape) each."""

    width: Positive = key("Width of the encoder.", 32, unit="channels")


class RatioBlock(NetworkBlock):
    """The network of a ratio: latents (B, *latent_shape) to the log of the ratio (B,)."""

    form: Literal["perceptron", "residual"] = key(
        "`perceptron`: layers of units. `residual`: convolutions with residual blocks, for latents that are maps.",
        "perceptron",
    )
    hidden: tuple[Positive, ...] = key(
        "Widths of the hidden layers of a perceptron; of a residual network the channels of its levels.",
        (200, 200),
        unit="units",
    )
    activation: Literal["silu", "leaky_relu", "gelu"] = key("Activation.", "silu")
    squares: bool = key("Whether a perceptron's second layer also gets the squares of the first layer's units.", False)


class ModelBlock(Block):
    """Latent size, networks, and the standard deviation of p(x | z)."""

    latent_dim: NonNegative = key(
        "Dimensions of the latent z. 0, which is the default where the samples are latents, takes it from them.", 16
    )
    latent_shape: tuple[Positive, ...] | None = key(
        "Shape of the latent, such as `[4, 8, 8]`; its product is `latent_dim`. Without it latents are vectors.",
        None,
    )
    generator: GeneratorBlock = key("The generator.", GeneratorBlock())
    encoder: EncoderBlock = key("The encoder, which `posterior.start: encoder` uses.", EncoderBlock())
    ratio: RatioBlock = key("The network of a ratio.", RatioBlock())
    sigma: PositiveFloat | Literal["auto"] = key(
        "Standard deviation of p(x | z), for pixels in [-1, 1]. `auto` learns it while the generator trains: its "
        "square is the mean squared residual.",
        0.3,
    )
    accept_changed: bool = key(
        "Whether a run may resume after the source of a class of your own has changed.", False, change="circumstance"
    )

    @model_validator(mode="before")
    @classmethod
    def _dim_of_shape(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "latent_dim" in values:
            return values
        shape, generator = values.get("latent_shape"), values.get("generator")
        if shape is None:
            form = generator.get("form") if isinstance(generator, dict) else getattr(generator, "form", None)
            return values | {"latent_dim": 0} if form == "identity" else values
        if isinstance(shape, list | tuple) and all(type(size) is int and 0 < size < 2**31 for size in shape):
            return values | {"latent_dim": math.prod(shape)}
        return values

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelBlock":
        if self.generator.top and (self.is_identity or self.generator.class_path is not None):
            raise ValueError("generator.top is for generators of this package; leave it out")
        if self.generator.top >= max(self.latent_dim, 1):
            raise ValueError(f"generator.top ({self.generator.top}) must be below latent_dim ({self.latent_dim})")
        if self.latent_dim == 0 and not self.is_identity:
            raise ValueError("latent_dim must be above 0 where there is a generator")
        if self.latent_shape is not None and math.prod(self.latent_shape) != self.latent_dim:
            raise ValueError(
                f"latent_dim ({self.latent_dim}) must be the product of latent_shape {list(self.latent_shape)}; give "
                "one of the two"
            )
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a latent."""
        return (self.latent_dim,) if self.latent_shape is None else self.latent_shape

    @property
    def is_identity(self) -> bool:
        """Whether the samples are latents themselves."""
        return self.generator.form == "identity"

    @property
    def size_is_given(self) -> bool:
        """Whether the latent size is known before the data are."""
        return self.latent_dim > 0
