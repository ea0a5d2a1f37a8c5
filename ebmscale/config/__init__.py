"""The configuration of a run, read from YAML and from changes such as `train.max_samples=20000`.

All lengths of time are in samples; `train.batch_size` is global, over all workers.
"""

from ebmscale.config.blocks import (
    AddressBlock,
    ChainBlock,
    DataBlock,
    HeldOutBlock,
    PosteriorBlock,
    PriorBlock,
    RunBlock,
    StagesBlock,
    StorageBlock,
)
from ebmscale.config.fields import Block, Fraction, NonNegative, Positive, PositiveFloat, mutable_keys
from ebmscale.config.keys import first_problem, known_keys, nearest_key, value_at
from ebmscale.config.loading import changed_keys, config_of, load_config, parse_config, with_values
from ebmscale.config.model_blocks import ModelBlock
from ebmscale.config.run_config import CIRCUMSTANCES, RESUMABLE, Method, Precision, RunConfig
from ebmscale.config.training_blocks import (
    CheckpointBlock,
    DeepspeedBlock,
    GeneratorOptimizerBlock,
    GuardBlock,
    LimitsBlock,
    MetricsBlock,
    OptimizerBlock,
    RatioOptimizerBlock,
    RayBlock,
    TrainBlock,
)

__all__ = [
    "CIRCUMSTANCES",
    "RESUMABLE",
    "AddressBlock",
    "Block",
    "ChainBlock",
    "CheckpointBlock",
    "DataBlock",
    "DeepspeedBlock",
    "Fraction",
    "GeneratorOptimizerBlock",
    "GuardBlock",
    "HeldOutBlock",
    "LimitsBlock",
    "Method",
    "MetricsBlock",
    "ModelBlock",
    "NonNegative",
    "OptimizerBlock",
    "Positive",
    "PositiveFloat",
    "PosteriorBlock",
    "Precision",
    "PriorBlock",
    "RatioOptimizerBlock",
    "RayBlock",
    "RunBlock",
    "RunConfig",
    "StagesBlock",
    "StorageBlock",
    "TrainBlock",
    "changed_keys",
    "config_of",
    "first_problem",
    "known_keys",
    "load_config",
    "mutable_keys",
    "nearest_key",
    "parse_config",
    "value_at",
    "with_values",
]
