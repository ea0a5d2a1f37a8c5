"""One self-contained HTML page about a run: samples, reconstructions, energies, evidence, chains, time, configuration.

The page shows the newest valid checkpoint of the run. All random numbers depend on the run and on `SEED` alone.

Shapes: N images or latents, C H W image, Z latent, K stages.
"""

import math
import platform
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebmscale.address import Address
from ebmscale.data.chunks import read_split
from ebmscale.data.manifest import Manifest
from ebmscale.density.langevin import ChainTrace
from ebmscale.errors import ConfigError, DataError, StorageError
from ebmscale.evaluate.prior_fit import samples_of_stages
from ebmscale.evaluate.rounding import with_error
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.load import open_model
from ebmscale.model.pixels import to_pixels
from ebmscale.model.run_folder import data_of
from ebmscale.model.samples_by_layer import samples_by_layer
from ebmscale.report import pictures
from ebmscale.report.energies import chains, chart_uri, energies
from ebmscale.report.headline import fits_at_freeze, key_figures, verdicts_of
from ebmscale.report.pages import Picture, render
from ebmscale.report.run_record import Line, RunRecord, fractions, number
from ebmscale.report.sample_pictures import num_shown, sample_grid, sample_picture
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import retried
from ebmscale.training.stage_samples import stage_file
from ebmscale.version import __version__
from ebmscale.world import device_of

REPORT_FILE, SAMPLES_FILE = "report.html", "samples.png"
SEED = 0  # of the samples; samples.png is `model.sample(64, SEED)`
ENERGY_SEED = 1  # of the latents whose energies are compared
NUM_HELD_OUT = 256
GRID_COLUMNS, TILE_COLUMNS = 8, 5
EVIDENCE = {
    "loss": ("Held-out loss (nats)", "of the classifier of z⁺ against z⁻; the dotted line is chance"),
    "kl_bound": ("KL bound (nats)", "lower bound on KL(q || p), with a band of 2 standard errors"),
    "auc": ("AUC", "of the same classifier; 0.5 is chance"),
    "ess": ("Effective sample size", "of the weights exp f at z⁻, as a fraction; near 0 few z⁻ determine the KL bound"),
    "calibration_error": ("Calibration error", "of the same classifier, between 0 and 1; 0 means calibrated"),
}
MEMORISED = (
    "Memorised (nats)",
    "loss on held-out posteriors minus that on training ones; the same of fresh and used negatives. 0 is best",
)
LEVELS = {"loss": (2 * math.log(2), "2 log 2"), "kl_bound": (0.0, ""), "auc": (0.5, "")}
"""The evidence of the zero ratio (chance), and the label of that value."""


@dataclass(frozen=True)
class HeldOutImages:
    """Held-out images with their posterior latents and reconstructions.

    Attributes:
        name: of the data set.
        x: (N, C, H, W) in [-1, 1].
        z: (N, Z) end of the posterior chain.
        trace: of that chain.
        reconstruction: (N, C, H, W).
    """

    name: str
    x: Tensor
    z: Tensor
    trace: ChainTrace
    reconstruction: Tensor


def write_report(run: Storage, data: Storage | None = None, retry_s: float = 0.0) -> Address:
    """Writes `report.html` and `samples.png` into a run, from its newest valid checkpoint and its record.

    Args:
        run: its storage.
        data: the data set of the run; None means the address in its configuration.
        retry_s: seconds during which a failing storage is tried again.

    Returns:
        The address of the page.

    Raises:
        ConfigError: there is no run.
        StorageError: the run has no valid checkpoint, or its storage fails.
    """
    model, record = open_model(run), RunRecord.of(run)
    model = model.to(device_of("cpu" if model.config.device == "cpu" else "auto"))
    held_out, missing = _held_out(model, data)
    drawn = samples_of_stages(model, NUM_HELD_OUT, ENERGY_SEED) if held_out else []
    z = model.sample_prior(num_shown(model, GRID_COLUMNS**2), SEED)
    samples = sample_picture(model, z, GRID_COLUMNS, held_out.z if held_out else None)
    data_name = held_out.name if held_out else model.config.data.url
    stages = record.stages(model.prior.num_stages, bool(model.config.num_live))
    at_freeze = fits_at_freeze(model, record)
    page = render(
        REPORT_FILE,
        name=model.config.run.name,
        num_stages=model.prior.num_stages,
        figures=key_figures(model, record, data_name, stages),
        verdicts=verdicts_of(model, held_out.z if held_out else None, drawn, stages, at_freeze),
        beyond=max(record.end - model.samples_seen, 0),
        samples=Picture(pictures.data_uri(samples, "image/png"), f"{len(z)} samples from the final prior"),
        stage_samples=_stage_samples(model, held_out),
        layer_samples=_layer_samples(model, z),
        shows_images=model.shows_images,
        is_given=model.is_given,
        latents_are=_latents_are(model),
        sample_shape=", ".join(map(str, model.sample_shape)),
        over_time=_samples_over_time(run, record, model.prior.num_stages),
        missing=missing,
        reconstruction=_reconstruction(model, held_out) if held_out and model.shows_images else None,
        evidence=_evidence(model, record),
        energies=energies(model, held_out.z, drawn, at_freeze) if held_out else [],
        chains=chains(model, held_out.trace if held_out else None, NUM_HELD_OUT, ENERGY_SEED),
        **_time(record),
        config=model.config.dump(),
        address=run.url,
        versions={"ebmscale": __version__, "torch": torch.__version__, "Python": platform.python_version()},
    )
    for name, content in ((SAMPLES_FILE, samples), (REPORT_FILE, page.encode())):
        retried(partial(run.publish, name, content), retry_s, threading.Event(), time.monotonic, "It")
    return run.url_of(REPORT_FILE)


def _held_out(model: LatentModel, data: Storage | None) -> tuple[HeldOutImages | None, str | None]:
    """The held-out images of the run, or why they cannot be read."""
    block = model.config.data
    try:
        storage = data or data_of(model.config, "give `ebmscale report` in that folder, or put the set back")
        manifest = Manifest.load(storage)
        if manifest.kind_of_samples[1] != model.sample_shape:
            raise DataError(f"{storage.url} now holds samples of shape {manifest.kind_of_samples[1]}.")
        images, _, _ = read_split(
            storage, manifest, "validation", NUM_HELD_OUT, block.validation_fraction, block.held_out
        )
    except (ConfigError, DataError, StorageError) as error:
        return None, str(error)
    x = to_pixels(images)
    z, trace = model.infer(x, SEED)
    reconstruction = model.decode(z) if model.shows_images else x
    return HeldOutImages(manifest.name, x, z, trace, reconstruction), None


def _latents_are(model: LatentModel) -> str:
    """What the posterior latents of the page are."""
    if model.is_given:
        return "given as data"
    return "the ends of posterior chains" if model.config.posterior.num_steps else "draws of the encoder"


def _stage_samples(model: LatentModel, held_out: HeldOutImages | None) -> list[Picture]:
    """Samples of the same chains at p_0, p_1, ..., p_K."""
    found, num = [], num_shown(model, GRID_COLUMNS**2)
    for stage in range(model.prior.num_stages + 1):
        z, _ = model.sample_chains(num, SEED, stage)  # the same noise at every stage
        shown = z[: num_shown(model, TILE_COLUMNS**2)]
        picture = sample_picture(model, shown, TILE_COLUMNS, held_out.z if held_out else None)
        found.append(Picture(pictures.data_uri(picture, "image/png"), f"k = {stage}"))
    return found


def _layer_samples(model: LatentModel, z: Tensor) -> Picture | None:
    """Rows of samples that share the upper layer of latents; None where there is one layer."""
    if not model.config.model.generator.top or not model.shows_images:
        return None
    found = samples_by_layer(model, z[:TILE_COLUMNS], GRID_COLUMNS, SEED)
    return _grid_picture(model, model.decode(found), "a row shares z₂", GRID_COLUMNS)


def _samples_over_time(run: Storage, record: RunRecord, num_stages: int) -> list[Picture]:
    """Samples at the end of every stage, by the generator of that time; runs of earlier versions have none."""
    found = {}
    for event in record.frozen(num_stages):
        file = stage_file(event["stage"], event["samples_seen"])
        if run.exists(file):
            uri = pictures.data_uri(run.read_bytes(file), "image/png")
            found[event["stage"]] = Picture(uri, f"k = {event['stage']}, {event['samples_seen']:,} samples")
    return list(found.values())


def _reconstruction(model: LatentModel, held_out: HeldOutImages) -> dict[str, Any]:
    """Held-out images, their reconstructions and the differences, with mean squared errors of pixels in [-1, 1]."""
    x, mean = held_out.x, held_out.reconstruction
    errors = (x - mean).square().flatten(1).mean(1)
    num = min(TILE_COLUMNS**2, len(x))
    grids = {"held-out images": x, "reconstructions": mean, "absolute difference": (x - mean).abs() - 1}
    return {
        "pictures": [_grid_picture(model, images[:num], title) for title, images in grids.items()],
        "num_shown": num,
        "num": len(x),
        "shown": f"{float(errors[:num].mean()):.4f}",
        "mean": f"{float(errors.mean()):.4f}",
        "low": f"{float(errors.quantile(0.05)):.4f}",
        "high": f"{float(errors.quantile(0.95)):.4f}",
    }


def _evidence(model: LatentModel, record: RunRecord) -> dict[str, Any]:
    """Evidence over time with the decisions of the scheduler, and a table of both."""
    marks, starts, end = record.marks(), record.starts(), max(record.end, model.samples_seen)

    def chart(curves: list[pictures.Curve], title: str, note: str, level: tuple[float, str] | None = None) -> Picture:
        return Picture(chart_uri(pictures.timeline(curves, marks, starts, end, level)), title, note)

    charts = []
    if record.measured:
        for name, (title, note) in EVIDENCE.items():
            curves = record.evidence(name, band="kl_bound_error" if name == "kl_bound" else None)
            charts.append(chart(curves, title, note, LEVELS.get(name)))
    if memorised := record.memorised():
        charts.append(chart(memorised, *MEMORISED, (0.0, "")))
    errors = [curve for curve in record.squared_errors() if curve.x]
    if errors:
        charts.append(chart(errors, "Mean squared error", "of reconstructions, pixels in [-1, 1]"))
    rows = [_decision_row(event, kind) for event, kind in zip(record.measured, record.kinds, strict=True)]
    return {
        "charts": charts,
        "colours": {kind: colour for kind, colour in pictures.MARK_COLOURS.items() if kind in {m.kind for m in marks}},
        "max_stages": model.config.most_stages,
        "decisions": [row for row in rows if row["kind"] != "Hold"],
        "measurements": rows,
    }


def _decision_row(event: Line, kind: str) -> dict[str, str]:
    evidence = {name: number(value) for name, value in event["evidence"].items()}
    return {
        "samples": f"{event['samples_seen']:,}",
        "stage": str(event["stage"]),
        "kind": kind,
        "loss": f"{evidence['loss']:.4f}",
        "kl": _bound(event),
        "auc": f"{evidence['auc']:.3f}",
        "ess": f"{evidence['ess']:.3f}",
        "reason": event["reason"],
    }


def _time(record: RunRecord) -> dict[str, Any]:
    """Time by part and speed."""
    if not record.metrics:
        return {"time_charts": [], "time_parts": []}
    seconds, edges = record.seconds(), record.edges()
    whole = max(sum(map(sum, seconds.values())), 1e-9)
    return {
        "time_charts": [
            Picture(chart_uri(pictures.fraction_chart(edges, fractions(seconds))), "Fraction of time by part"),
            Picture(chart_uri(pictures.speed_chart(edges, record.speeds())), "Speed (samples/s)"),
        ],
        "time_parts": [
            {"name": part, "colour": colour, "seconds": f"{sum(values):,.1f}", "fraction": f"{sum(values) / whole:.1%}"}
            for (part, values), colour in zip(seconds.items(), pictures.PART_COLOURS, strict=True)
        ],
    }


def _grid_picture(model: LatentModel, images: Tensor, title: str, columns: int = TILE_COLUMNS) -> Picture:
    return Picture(pictures.data_uri(sample_grid(model, images, columns), "image/png"), title)


def _bound(event: Line) -> str:
    evidence = event["evidence"]
    return with_error(number(evidence["kl_bound"]), number(evidence["kl_bound_error"]))
