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
    """The generator and, where the posterior starts from one, the encoder, with the run's initial weights."""
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
    """The networks of a run, of any size, without their weights.

    Raises:
        ConfigError: no machine can count so many weights, or there are no networks for such images.
    """
    model = config.model
    with _uncountable_refused(), torch.device("meta"):
        generator = Generator(model.latent_dim, shape, model.generator_width, model.form)
        encoder = None
        if config.posterior.start == "encoder":
            encoder = Encoder(shape, model.latent_dim, model.encoder_width, model.form)
        return ImageModel(generator, encoder), RatioNet(*ratio_form(model))


def build_ratio_on_meta(config: RunConfig) -> RatioNet:
    """The ratio network of a run without its weights; errors as of `build_on_meta`."""
    with _uncountable_refused(), torch.device("meta"):
        return RatioNet(*ratio_form(config.model))


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
    """The ratio networks of a live prior, which are trained at once: zero functions."""
    return RatioNets([build_ratio_network(config, stage) for stage in range(1, config.num_live + 1)])


def build_ratio_network(config: RunConfig, stage: int = 1) -> RatioNet:
    """The ratio network of a stage as it starts: the zero function."""
    source = torch_generator(config.run.seed, "ratio-weights", stage, 0)
    return build_ratio_net(*ratio_form(config.model), generator=source)


def ratio_form(model: ModelBlock) -> tuple[int, tuple[int, ...], str, bool]:
    """The arguments of `RatioNet` and of `build_ratio_net`."""
    return (
        model.latent_dim,
        model.ratio_hidden,
        model.ratio_activation,
        model.ratio_squares,
    )
