"""The networks that a configuration describes, with the run's seeded initial weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ebmscale.config import ModelBlock, RunConfig
from ebmscale.errors import ConfigError
from ebmscale.model.image_model import ImageModel
from ebmscale.networks import (
    WIDE_BOUND,
    Bounded,
    Encoder,
    Generator,
    ImageShape,
    RatioNet,
    RatioNets,
    Standardised,
    build_encoder,
    build_generator,
    build_ratio_net,
    set_bound,
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


def build_on_meta(config: RunConfig, shape: ImageShape) -> tuple[ImageModel, nn.Module]:
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
        return ImageModel(generator, encoder), _of_stage(config, RatioNet(*ratio_arguments(model)))


def build_ratio_on_meta(config: RunConfig) -> nn.Module:
    """The ratio network of a run on the meta device. Raises as `build_on_meta`."""
    with _uncountable_refused(), torch.device("meta"):
        return _of_stage(config, RatioNet(*ratio_arguments(config.model)))


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
    return RatioNets([_perceptron(config, stage) for stage in range(1, config.num_live + 1)])


def build_ratio_network(config: RunConfig) -> nn.Module:
    """The initial ratio network of a stage, the zero function, and the form of all."""
    return _of_stage(config, _perceptron(config, 1))


def _perceptron(config: RunConfig, stage: int) -> RatioNet:
    source = torch_generator(config.run.seed, "ratio-weights", stage, 0)
    return build_ratio_net(*ratio_arguments(config.model), generator=source)


def _of_stage(config: RunConfig, perceptron: RatioNet) -> nn.Module:
    """The ratio of a perceptron: bounded and with standardised inputs where p_k is a density, else itself."""
    if not config.uses_density:
        return perceptron
    network = Standardised(Bounded(perceptron), config.model.latent_dim)
    set_bound(network, WIDE_BOUND)
    return network


def ratio_arguments(model: ModelBlock) -> tuple[int, tuple[int, ...], str, bool]:
    """The arguments of `RatioNet` and of `build_ratio_net`."""
    return (
        model.latent_dim,
        model.ratio_hidden,
        model.ratio_activation,
        model.ratio_squares,
    )
