"""The networks that a configuration describes, with the run's seeded initial weights."""

from ebmscale.config import ModelBlock, RunConfig
from ebmscale.model.image_model import ImageModel
from ebmscale.networks import ImageShape, RatioNet, RatioNets, build_encoder, build_generator, build_ratio_net
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
