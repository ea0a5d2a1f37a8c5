"""ebmscale: latent-space energy-based priors by adaptive multi-stage density ratio estimation.

Everything in `__all__` is public. What a name needs is imported when it is first used, so `import ebmscale` is quick
and needs neither Ray nor DeepSpeed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ebmscale.version import __version__

if TYPE_CHECKING:
    from ebmscale.api import TrainedRun, train
    from ebmscale.config import RunConfig, load_config
    from ebmscale.density.bases import Gaussian
    from ebmscale.density.mixture import Mixture
    from ebmscale.density.prior import StandardNormal
    from ebmscale.errors import EbmscaleError
    from ebmscale.model.latent_model import LatentModel
    from ebmscale.model.load import load
    from ebmscale.ratios import FitSettings, FittedRatio, fit_ratio

__all__ = [
    "EbmscaleError",
    "FitSettings",
    "FittedRatio",
    "Gaussian",
    "LatentModel",
    "Mixture",
    "RunConfig",
    "StandardNormal",
    "TrainedRun",
    "__version__",
    "fit_ratio",
    "load",
    "load_config",
    "train",
]

_HOMES = {
    "EbmscaleError": "ebmscale.errors",
    "FitSettings": "ebmscale.ratios",
    "FittedRatio": "ebmscale.ratios",
    "Gaussian": "ebmscale.density.bases",
    "LatentModel": "ebmscale.model.latent_model",
    "Mixture": "ebmscale.density.mixture",
    "RunConfig": "ebmscale.config",
    "StandardNormal": "ebmscale.density.prior",
    "TrainedRun": "ebmscale.api",
    "fit_ratio": "ebmscale.ratios",
    "load": "ebmscale.model.load",
    "load_config": "ebmscale.config",
    "train": "ebmscale.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ebmscale' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
