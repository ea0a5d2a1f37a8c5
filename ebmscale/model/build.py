"""The networks that a configuration describes, with the run's seeded initial weights."""

import math
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
    FlatPosterior,
    GivenEncoder,
    GivenGenerator,
    ImageShape,
    OfShape,
    OwnRatio,
    RatioNet,
    RatioNets,
    ResidualRatioNet,
    Standardised,
    build,
    freeze,
    image_encoder,
    image_generator,
    own_network,
    set_bound,
)
from ebmscale.seeds import derive, torch_generator

SampleShape = tuple[int, ...]
"""Of a sample: (C, H, W) of an image."""


@contextmanager
def _uncountable_refused() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OverflowError, TypeError):  # torch counts with 64 bits
        raise ConfigError(
            "The networks have more weights than can be counted; lower model.latent_dim, model.generator.width, "
            "model.encoder.width or model.ratio.hidden."
        ) from None


def build_model(config: RunConfig, shape: SampleShape) -> ImageModel:
    """The generator, and the encoder if the configuration has one, with random weights of the run's seed.

    Args:
        config: of the run.
        shape: of a sample, (C, H, W) of images.

    Raises:
        ConfigError: there is no architecture for samples of that shape, or a class of the user's own cannot be made.
    """
    model, seed = config.model, config.run.seed
    if model.is_identity:
        return _given(model, shape)
    of_generator, of_encoder = model.generator, model.encoder
    if of_generator.class_path is not None:
        own = own_network(of_generator.class_path, of_generator.args, derive(seed, "generator-weights"))
        generator: nn.Module = OfShape(own, model.shape)
    else:
        generator = build(lambda: _image_generator(model, shape), torch_generator(seed, "generator-weights"))
    encoder: nn.Module | None = None
    if config.uses_encoder and of_encoder.class_path is not None:
        encoder = FlatPosterior(own_network(of_encoder.class_path, of_encoder.args, derive(seed, "encoder-weights")))
    elif config.uses_encoder:
        encoder = build(lambda: _image_encoder(model, shape), torch_generator(seed, "encoder-weights"))
    return _frozen(config, ImageModel(generator, encoder))


@_uncountable_refused()
def _image_generator(model: ModelBlock, shape: SampleShape) -> nn.Module:
    """This package's generator, before its weights are drawn."""
    block = model.generator
    return image_generator(model.latent_dim, _as_images(shape, "generator"), block.width, block.form, block.top)


@_uncountable_refused()
def _image_encoder(model: ModelBlock, shape: SampleShape) -> nn.Module:
    """This package's encoder, before its weights are drawn."""
    return image_encoder(_as_images(shape, "encoder"), model.latent_dim, model.encoder.width, model.generator.form)


def _given(model: ModelBlock, shape: SampleShape) -> ImageModel:
    """The pair that takes latents as they are. Raises ConfigError where the samples are not such latents."""
    posteriors = shape[:1] == (2,) and math.prod(shape) == 2 * model.latent_dim
    own = shape[1:] if posteriors else shape
    if math.prod(own) != model.latent_dim or (model.latent_shape is not None and own != model.latent_shape):
        raise ConfigError(
            f"The samples are latents of shape {list(own)}, and the configuration has model.latent_shape "
            f"{list(model.shape)}; leave model.latent_shape and model.latent_dim out, and they are taken from the data."
        )
    return ImageModel(GivenGenerator(own), GivenEncoder(own))


def _frozen(config: RunConfig, networks: ImageModel) -> ImageModel:
    """The networks, of which those that training leaves alone have constants in place of parameters."""
    if not config.model.generator.train:
        freeze(networks.generator)
    if networks.encoder is not None and not config.model.encoder.train:
        freeze(networks.encoder)
    return networks


def _as_images(shape: SampleShape, what: str) -> ImageShape:
    if len(shape) != 3:
        raise ConfigError(
            f"The {what} of this package takes images (C, H, W), and the samples have the shape {list(shape)}; name a "
            f"network of your own in model.{what}.class, or set model.generator.form: identity where they are latents."
        )
    channels, height, width = shape
    return channels, height, width


def build_on_meta(config: RunConfig, shape: SampleShape) -> tuple[ImageModel, nn.Module]:
    """The networks of a run on the meta device, so that they need no memory.

    Raises:
        ConfigError: the number of weights overflows 64 bits, or as `build_model`.
    """
    model = config.model
    if model.is_identity or model.generator.class_path is not None or model.encoder.class_path is not None:
        return build_model(config, shape).to("meta"), build_ratio_on_meta(config)
    with torch.device("meta"):
        generator = _image_generator(model, shape)
        encoder = _image_encoder(model, shape) if config.uses_encoder else None
        return _frozen(config, ImageModel(generator, encoder)), build_ratio_on_meta(config)


def build_ratio_on_meta(config: RunConfig) -> nn.Module:
    """The ratio network of a run on the meta device. Raises as `build_on_meta`."""
    if config.model.ratio.class_path is not None:
        return build_ratio_network(config).to("meta")
    with torch.device("meta"):
        return _of_stage(config, _plain_ratio(config.model))


def build_live_networks(config: RunConfig) -> RatioNets:
    """The ratio networks of a live prior, which are trained together. Each of ours starts as the zero function."""
    return RatioNets([_ratio(config, stage) for stage in range(1, config.num_live + 1)])


def build_ratio_network(config: RunConfig) -> nn.Module:
    """The initial ratio network of a stage, and the form of all. Ours starts as the zero function."""
    return _of_stage(config, _ratio(config, 1))


def _ratio(config: RunConfig, stage: int) -> nn.Module:
    block, seed = config.model.ratio, config.run.seed
    if block.class_path is not None:
        own = own_network(block.class_path, block.args, derive(seed, "ratio-weights", stage, 0))
        return OwnRatio(own, config.model.shape)
    return build(lambda: _plain_ratio(config.model), torch_generator(seed, "ratio-weights", stage, 0))


@_uncountable_refused()
def _plain_ratio(model: ModelBlock) -> nn.Module:
    """A ratio network of this package, before its weights are drawn."""
    block = model.ratio
    if block.form == "residual":
        return ResidualRatioNet(model.shape, block.hidden, block.activation)
    return RatioNet(model.latent_dim, block.hidden, block.activation, block.squares)


def _of_stage(config: RunConfig, inner: nn.Module) -> nn.Module:
    """The ratio of a network: bounded and with standardised inputs where p_k is a density, else itself."""
    if not config.uses_density:
        return inner
    network = Standardised(Bounded(inner), config.model.latent_dim)
    set_bound(network, WIDE_BOUND)
    return network
