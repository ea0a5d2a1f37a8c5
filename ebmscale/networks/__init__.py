"""The networks: plain `torch.nn` modules, unaware of ranks, engines, files and configuration."""

from ebmscale.networks.architectures import ARCHITECTURES, Architecture, ImageShape, Layer, find_architecture
from ebmscale.networks.blocks import count_parameters, initialise, take_features
from ebmscale.networks.encoder import LOG_STD_BOUND, Encoder, build_encoder
from ebmscale.networks.generator import Generator, build_generator
from ebmscale.networks.ratio_heads import (
    NARROW_BOUND,
    WIDE_BOUND,
    Bounded,
    ConvRatioNet,
    QuadraticHead,
    Standardised,
    quadratic_part,
    set_bound,
    vector_ratio,
)
from ebmscale.networks.ratio_net import ACTIVATIONS, RatioNet, RatioNets, build_ratio_net

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
    "Generator",
    "ImageShape",
    "Layer",
    "QuadraticHead",
    "RatioNet",
    "RatioNets",
    "Standardised",
    "build_encoder",
    "build_generator",
    "build_ratio_net",
    "count_parameters",
    "find_architecture",
    "initialise",
    "quadratic_part",
    "set_bound",
    "take_features",
    "vector_ratio",
]
