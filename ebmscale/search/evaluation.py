"""Objectives that are measured on a finished run: values of `ebmscale evaluate`, without the test images.

The name of an objective is `evaluate/METRIC/VALUE`, such as `evaluate/anomaly/auprc_joint`. `evaluate/frechet/FD` is
the Frechet distance with any features.
"""

from collections.abc import Sequence

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError
from ebmscale.model.load import open_model
from ebmscale.model.run_folder import data_of
from ebmscale.search.objectives import EVALUATED
from ebmscale.search.space import EvaluateBlock, Space
from ebmscale.storage import Storage
from ebmscale.world import device_of

_SCORES = ("joint", "reconstruction", "prior", "ratio", "balanced")
VALUES = {
    "reconstruction": ("mse", "mse_unit", "psnr"),
    "anomaly": (*(f"auprc_{part}" for part in _SCORES), *(f"auroc_{part}" for part in _SCORES)),
    "likelihood": ("log_likelihood",),
    "frechet": ("FD", "precision", "recall", "density", "coverage"),
}


def names() -> list[str]:
    """The names of all objectives of this kind."""
    return [f"{EVALUATED}{metric}/{value}" for metric, values in VALUES.items() for value in values]


def check(space: Space, config: RunConfig) -> None:
    """Refuses objectives that cannot be measured on any trial.

    Args:
        space: whose objectives are checked.
        config: of the search, with the overrides.

    Raises:
        ConfigError: a Frechet distance without features, or anomaly scores on images without anomalies.
    """
    asked = {objective.metric.split("/")[1] for objective in space.objectives if objective.metric.startswith(EVALUATED)}
    held_out = config.data.held_out
    if config.model.is_identity and asked & {"reconstruction"}:
        raise ConfigError("objectives: evaluate/reconstruction is for runs with a generator, and this one has latents.")
    if "likelihood" in asked and not config.model.is_identity:
        raise ConfigError(
            "objectives: evaluate/likelihood is exact for given latents alone; use another objective, such as "
            "evaluate/frechet/FD."
        )
    if "frechet" in asked and space.evaluate.features is None and not config.model.is_identity:
        raise ConfigError("objectives: evaluate/frechet needs features; give evaluate.features in the space.")
    if "anomaly" in asked and (held_out.label is None or held_out.protocol == "pooled"):
        raise ConfigError(
            "objectives: evaluate/anomaly needs a class that is held out, and images of it outside the test part; set "
            "data.held_out.label, and set data.held_out.protocol to official, for instance in the space's overrides."
        )
    if "anomaly" in asked and space.evaluate.split != "validation":
        raise ConfigError("objectives: evaluate/anomaly needs evaluate.split=validation, since train has no anomalies.")


def measure_run(
    run: Storage, wanted: Sequence[str], block: EvaluateBlock, data: Storage | None = None
) -> dict[str, float]:
    """Measures the wanted values on a run's newest checkpoint.

    Args:
        run: its storage.
        wanted: names among `names()`.
        block: selects the images.
        data: storage of the data set; by default that of the run's configuration.
    """
    from ebmscale.evaluate.features import open_features  # noqa: PLC0415 (a driver needs no scipy or pillow)
    from ebmscale.evaluate.metrics import measure_metric  # noqa: PLC0415

    device = device_of()
    model = open_model(run).to(device)
    data = data or data_of(model.config, "put it back there, and run the same command again")
    found: dict[str, float] = {}
    for metric in sorted({name.split("/")[1] for name in wanted}):
        network = open_features(block.features, device) if metric == "frechet" and block.features else None
        values = measure_metric(model, data, metric, network, block.split, block.num_samples, block.seed).values
        if metric == "frechet":
            values = {"FD": next(iter(values.values())), **values}
        found |= {f"{EVALUATED}{metric}/{name}": float(value) for name, value in values.items()}
    return {name: found[name] for name in wanted if name in found}
