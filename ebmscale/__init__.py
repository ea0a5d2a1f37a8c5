"""ebmscale: latent-space energy-based priors by adaptive multi-stage density ratio estimation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebmscale.config import RunConfig
    from ebmscale.model.latent_model import LatentModel
    from ebmscale.ratios import FittedRatio

from ebmscale.version import __version__

__all__ = ["__version__", "fit_ratio", "load", "train"]


def load(url: str) -> "LatentModel":
    """Opens a run's newest valid checkpoint, or an export: a model with sample, reconstruct, log_prior and score."""
    from ebmscale.model.latent_model import load as load_model  # noqa: PLC0415

    return load_model(url)


def fit_ratio(p: Any, q: Any, **settings: Any) -> "FittedRatio":
    """Fits log q - log p of any two sets of samples, by as many stages as it takes; see `ebmscale.ratios.fit_ratio`."""
    from ebmscale.ratios import fit_ratio as fit  # noqa: PLC0415

    return fit(p, q, **settings)


def train(config: "RunConfig") -> str:
    """Trains a run to its budget, or resumes it; returns its address."""
    from ebmscale.stop import StopSignal  # noqa: PLC0415
    from ebmscale.training.loop import train as train_loop  # noqa: PLC0415
    from ebmscale.training.view import View  # noqa: PLC0415
    from ebmscale.world import World  # noqa: PLC0415

    if config.ray.num_workers:
        from ebmscale.runtime.ray_train import train_on_ray  # noqa: PLC0415
        from ebmscale.terminal import Terminal  # noqa: PLC0415

        return train_on_ray(config, Terminal(quiet=True))
    return train_loop(config, View(quiet=True), World.from_environment(config.device), StopSignal())
