"""Commands on sets of samples: their density ratio."""

import io
import json
import math
from dataclasses import asdict
from typing import Any

import click
import numpy as np

from ebmscale.cli.group import cli, console, example
from ebmscale.cli.outputs import ADDRESS, OutputFile, output_file
from ebmscale.errors import ConfigError


@cli.command(epilog=example("ebmscale ratio before.npy after.npy --out ratio.npz"))
@click.argument("p", type=ADDRESS)
@click.argument("q", type=ADDRESS)
@click.option(
    "--base",
    type=click.Choice(["auto", "samples", "gaussian", "normal"]),
    default="auto",
    show_default=True,
    help="auto: samples where p's samples reach q, else gaussian. samples: p is its samples alone. "
    "gaussian: through the Gaussian with p's moments. normal: p is N(0, I).",
)
@click.option(
    "--quadratic/--no-quadratic", default=True, show_default=True, help="Add a quadratic head to the perceptron."
)
@click.option(
    "--hidden", default="128,128", show_default=True, help="Widths of the hidden layers, with commas; '' is none."
)
@click.option(
    "--waves",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Sines as further inputs of the perceptron: for sharp densities in few dimensions.",
)
@click.option("--max-stages", type=click.IntRange(1), default=8, show_default=True, help="Largest number of stages.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--out", type=ADDRESS, help="FILE.npz for log q - log p at all samples; FILE.json is written beside it.")
def ratio(
    p: str,
    q: str,
    base: str,
    quadratic: bool,
    hidden: str,
    waves: int,
    max_stages: int,
    seed: int,
    out: str | None,
) -> None:
    """Fit log q - log p to the samples in P and Q.

    P and Q are .npy or .npz files or packed sets. The KL divergence of q from p is estimated too. With --base normal p
    is the standard normal and P is not read: write - for it.
    """
    from ebmscale.density.prior import StandardNormal  # noqa: PLC0415 (commands import what they use)
    from ebmscale.ratios import FitSettings, fit_ratio  # noqa: PLC0415
    from ebmscale.ratios.read import read_array, read_samples  # noqa: PLC0415

    target = output_file(out, (".npz",)) if out is not None else None
    console.print(f"fitting the ratio of {q} to {'N(0, I)' if base == 'normal' else p}; every stage is a line")
    try:
        widths = tuple(int(width) for width in hidden.split(",") if width)
    except ValueError:
        raise ConfigError(f"--hidden {hidden} must be numbers with commas, such as 128,128.") from None
    samples_q = read_samples(q, "q") if base == "normal" else read_array(q)
    samples_p = StandardNormal(math.prod(samples_q.shape[1:])) if base == "normal" else read_array(p)
    settings = FitSettings(hidden=widths, waves=waves, quadratic=quadratic, max_stages=max_stages)
    fitted = fit_ratio(
        samples_p,
        samples_q,
        base="auto" if base == "normal" else base,
        settings=settings,
        seed=seed,
        progress=lambda row: console.print(_stage_line(row)),
    )
    for line in fitted.lines():
        console.print(line)
    if target is not None:
        sets = {"log_ratio_q": samples_q} | ({} if base == "normal" else {"log_ratio_p": samples_p})
        _write(target, {name: fitted.log_ratio(rows).numpy() for name, rows in sets.items()}, fitted)


def _stage_line(row: Any) -> str:
    bound = f"{row.evidence.kl_bound:.4f} ± {row.evidence.kl_bound_error:.4f}"
    numbers = f"held-out loss {row.evidence.loss:.4f}, KL bound {bound}, gain {row.gain:.3f}"
    return f"stage {row.stage}, {row.updates:,} updates: {numbers} ({row.reason})"


def _write(target: OutputFile, arrays: dict[str, np.ndarray], fitted: Any) -> None:
    about = {
        "kl": fitted.kl,
        "kl_error": fitted.kl_error,
        "interval": fitted.interval,
        "warning": fitted.warning,
        "log_z": fitted.normaliser.log_z,
        "log_z_error": fitted.normaliser.error,
        "effective": fitted.effective,
        "calibration": asdict(fitted.calibration),
        "stages": [asdict(row) for row in fitted.stages],
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    target.publish(content.getvalue())
    target.publish(json.dumps(about, indent=1).encode(), ".json")
    console.print(f"log ratios in {target.address}")
