"""What a search may ask of a finished run: values of `ebmscale evaluate`, on held-out images that are no test images.

An objective is named `evaluate/METRIC/VALUE`, such as `evaluate/anomaly/auprc_joint`. `evaluate/frechet/FD` is the
Frechet distance, whatever the features that it is named after.
"""

from collections.abc import Sequence

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError
from ebmscale.model.latent_model import open_model
from ebmscale.model.run_folder import data_of
from ebmscale.search.objectives import EVALUATED
from ebmscale.search.space import EvaluateBlock, Space
from ebmscale.storage import Storage
from ebmscale.world import device_of

_SCORES = ("joint", "reconstruction", "prior", "ratio", "balanced")
VALUES = {
    "reconstruction": ("mse", "mse_unit", "psnr"),
    "anomaly": (*(f"auprc_{part}" for part in _SCORES), *(f"auroc_{part}" for part in _SCORES)),
    "frechet": ("FD", "precision", "recall", "density", "coverage"),
}


def names() -> list[str]:
    """What can be asked for."""
    return [f"{EVALUATED}{metric}/{value}" for metric, values in VALUES.items() for value in values]


def check(space: Space, config: RunConfig) -> None:
    """Refuses what could not be measured on any trial.

    Args:
        space: whose objectives are looked at.
        config: of the search, with the overrides.

    Raises:
        ConfigError: a Frechet distance without features, or anomalies where there are none among the images.
    """
    asked = {objective.metric.split("/")[1] for objective in space.objectives if objective.metric.startswith(EVALUATED)}
    held_out = config.data.held_out
    if "frechet" in asked and space.evaluate.features is None:
        raise ConfigError("objectives: evaluate/frechet needs features; give evaluate.features in the space.")
    if "anomaly" in asked and (held_out.label is None or held_out.protocol == "pooled"):
        raise ConfigError(
            "objectives: evaluate/anomaly needs a class that is held out, and some of it that is not the test's; set "
            "data.held_out.label, and data.held_out.protocol to official, for instance in the space's overrides."
        )
    if "anomaly" in asked and space.evaluate.split != "validation":
        raise ConfigError("objectives: evaluate/anomaly needs evaluate.split validation; train has no anomalies.")


def measure_run(
    run: Storage, wanted: Sequence[str], block: EvaluateBlock, data: Storage | None = None
) -> dict[str, float]:
    """The wanted values of a run's newest checkpoint.

    Args:
        run: its storage.
        wanted: of `names`.
        block: on which images.
        data: where its set lies; where not given, its configuration says so.
    """
    from ebmscale.evaluate.features import open_features  # noqa: PLC0415 (a driver does without scipy and pillow)
    from ebmscale.evaluate.metrics import measure  # noqa: PLC0415

    device = device_of()
    model = open_model(run).to(device)
    data = data or data_of(model.config, "put it back there, and give the same command again")
    found: dict[str, float] = {}
    for metric in sorted({name.split("/")[1] for name in wanted}):
        network = open_features(block.features, device) if metric == "frechet" and block.features else None
        values = measure(model, data, metric, network, block.split, block.num_samples, block.seed).values
        if metric == "frechet":
            values = {"FD": next(iter(values.values())), **values}
        found |= {f"{EVALUATED}{metric}/{name}": float(value) for name, value in values.items()}
    return {name: found[name] for name in wanted if name in found}
