"""The networks: plain `torch.nn` modules, unaware of ranks, engines, files and configuration."""

from ebmscale.networks.architectures import ARCHITECTURES, Architecture, ImageShape, Layer, find_architecture
from ebmscale.networks.blocks import LOG_STD_BOUND, build, count_parameters, initialise, take_features, weight_of
from ebmscale.networks.by_form import check_side, image_encoder, image_generator
from ebmscale.networks.encoder import Encoder, build_encoder
from ebmscale.networks.generator import Generator, build_generator
from ebmscale.networks.given import GivenEncoder, GivenGenerator, Standard
from ebmscale.networks.own import FlatPosterior, OfShape, OwnRatio, freeze, own_network, source_sha256
from ebmscale.networks.ratio_heads import (
    NARROW_BOUND,
    WIDE_BOUND,
    Bounded,
    ConvRatioNet,
    QuadraticHead,
    ResidualRatioNet,
    Standardised,
    quadratic_part,
    set_bound,
    vector_ratio,
)
from ebmscale.networks.ratio_net import ACTIVATIONS, RatioNet, RatioNets, build_ratio_net
from ebmscale.networks.residual import ResidualEncoder, ResidualGenerator
from ebmscale.networks.two_layers import TwoLayerGenerator, TwoLayers

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "LOG_STD_BOUND",
    "NARROW_BOUND",
    "WIDE_BOUND",
    "Architecture",
    "Bounded",
    "ConvRatioNet",
    "Encoder",
    "FlatPosterior",
    "Generator",
    "GivenEncoder",
    "GivenGenerator",
    "ImageShape",
    "Layer",
    "OfShape",
    "OwnRatio",
    "QuadraticHead",
    "RatioNet",
    "RatioNets",
    "ResidualEncoder",
    "ResidualGenerator",
    "ResidualRatioNet",
    "Standard",
    "Standardised",
    "TwoLayerGenerator",
    "TwoLayers",
    "build",
    "build_encoder",
    "build_generator",
    "build_ratio_net",
    "check_side",
    "count_parameters",
    "find_architecture",
    "freeze",
    "image_encoder",
    "image_generator",
    "initialise",
    "own_network",
    "quadratic_part",
    "set_bound",
    "source_sha256",
    "take_features",
    "vector_ratio",
    "weight_of",
]
