"""ebmscale: latent-space energy-based priors by adaptive multi-stage density ratio estimation.

Everything in `__all__` is public. What a name needs is imported when it is first used, so `import ebmscale` is quick
and needs neither Ray nor DeepSpeed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ebmscale.version import __version__

if TYPE_CHECKING:
    from ebmscale.config import RunConfig, load_config
    from ebmscale.density.bases import Gaussian, Mixture
    from ebmscale.density.prior import StandardNormal
    from ebmscale.model.latent_model import LatentModel, load
    from ebmscale.ratios import FitSettings, FittedRatio, fit_ratio

__all__ = [
    "FitSettings",
    "FittedRatio",
    "Gaussian",
    "LatentModel",
    "Mixture",
    "RunConfig",
    "StandardNormal",
    "__version__",
    "fit_ratio",
    "load",
    "load_config",
    "train",
]

_HOMES = {
    "FitSettings": "ebmscale.ratios",
    "FittedRatio": "ebmscale.ratios",
    "Gaussian": "ebmscale.density.bases",
    "LatentModel": "ebmscale.model.latent_model",
    "Mixture": "ebmscale.density.bases",
    "RunConfig": "ebmscale.config",
    "StandardNormal": "ebmscale.density.prior",
    "fit_ratio": "ebmscale.ratios",
    "load": "ebmscale.model.latent_model",
    "load_config": "ebmscale.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ebmscale' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def train(config: "RunConfig") -> str:
    """Trains a run to its budget, or resumes it from its newest valid checkpoint.

    Args:
        config: as `load_config` reads it. The budget is `train.max_samples`, in samples.

    Returns:
        The run's address, for `load`.

    Raises:
        EbmscaleError: one sentence that says what is wrong and what to do (see `ebmscale.errors`).

    Example:
        >>> config = ebmscale.load_config("configs/digits.yaml", ["train.max_samples=20000"])
        >>> model = ebmscale.load(ebmscale.train(config))
    """
    from ebmscale.stop import StopSignal  # noqa: PLC0415
    from ebmscale.training.loop import train as train_loop  # noqa: PLC0415
    from ebmscale.training.view import View  # noqa: PLC0415
    from ebmscale.world import World  # noqa: PLC0415

    if config.ray.num_workers:
        from ebmscale.runtime.ray_train import train_on_ray  # noqa: PLC0415
        from ebmscale.terminal import Terminal  # noqa: PLC0415

        return train_on_ray(config, Terminal(quiet=True))
    return train_loop(config, View(quiet=True), World.from_environment(config.device), StopSignal())
