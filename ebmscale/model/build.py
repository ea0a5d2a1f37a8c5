"""The networks that a configuration describes, with the run's seeded initial weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ebmscale.config import ModelBlock, RunConfig
from ebmscale.errors import ConfigError
from ebmscale.model.image_model import ImageModel
from ebmscale.networks import (
    Encoder,
    Generator,
    ImageShape,
    RatioNet,
    RatioNets,
    build_encoder,
    build_generator,
    build_ratio_net,
)
from ebmscale.seeds import torch_generator


def build_model(config: RunConfig, shape: ImageShape) -> ImageModel:
    """The generator, and the encoder if the configuration has one, with the initial weights of the run.

    Args:
        config: of the run.
        shape: (C, H, W) of the images.

    Raises:
        ConfigError: there is no architecture for images of that shape.
    """
    model, seed = config.model, config.run.seed
    generator = build_generator(
        model.latent_dim, shape, model.generator_width, model.form, generator=torch_generator(seed, "generator-weights")
    )
    if config.posterior.start != "encoder":
        return ImageModel(generator, None)
    source = torch_generator(seed, "encoder-weights")
    return ImageModel(
        generator, build_encoder(shape, model.latent_dim, model.encoder_width, model.form, generator=source)
    )


def build_on_meta(config: RunConfig, shape: ImageShape) -> tuple[ImageModel, RatioNet]:
    """The networks of a run on the meta device, so that they need no memory.

    Raises:
        ConfigError: the number of weights overflows 64 bits, or there is no architecture for images of that shape.
    """
    model = config.model
    with _uncountable_refused(), torch.device("meta"):
        generator = Generator(model.latent_dim, shape, model.generator_width, model.form)
        encoder = None
        if config.posterior.start == "encoder":
            encoder = Encoder(shape, model.latent_dim, model.encoder_width, model.form)
        return ImageModel(generator, encoder), RatioNet(*ratio_arguments(model))


def build_ratio_on_meta(config: RunConfig) -> RatioNet:
    """The ratio network of a run on the meta device. Raises as `build_on_meta`."""
    with _uncountable_refused(), torch.device("meta"):
        return RatioNet(*ratio_arguments(config.model))


@contextmanager
def _uncountable_refused() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OverflowError, TypeError):  # torch counts with 64 bits
        raise ConfigError(
            "The networks have more weights than can be counted; lower model.latent_dim, model.generator_width, "
            "model.encoder_width or model.ratio_hidden."
        ) from None


def build_live_networks(config: RunConfig) -> RatioNets:
    """The ratio networks of a live prior, which are trained together. Each starts as the zero function."""
    return RatioNets([build_ratio_network(config, stage) for stage in range(1, config.num_live + 1)])


def build_ratio_network(config: RunConfig, stage: int = 1) -> RatioNet:
    """The initial ratio network of a stage: the zero function."""
    source = torch_generator(config.run.seed, "ratio-weights", stage, 0)
    return build_ratio_net(*ratio_arguments(config.model), generator=source)


def ratio_arguments(model: ModelBlock) -> tuple[int, tuple[int, ...], str, bool]:
    """The arguments of `RatioNet` and of `build_ratio_net`."""
    return (
        model.latent_dim,
        model.ratio_hidden,
        model.ratio_activation,
        model.ratio_squares,
    )
