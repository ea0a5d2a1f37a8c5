"""Commands on trained runs."""

import io
import math

import click
import numpy as np

import ebmscale
from ebmscale.cli.group import Count, cli, console, example, seed_option
from ebmscale.cli.outputs import ADDRESS, output_file, output_folder
from ebmscale.cli.progress import Steps
from ebmscale.errors import ConfigError


@cli.command(epilog=example("ebmscale sample runs/digits -n 64 --out samples.png"))
@click.argument("run", type=ADDRESS)
@click.option("-n", "num", type=Count(1), default=64, show_default=True, help="Number of samples.")
@click.option(
    "--out",
    required=True,
    type=ADDRESS,
    help="FILE.png (a grid of images) or FILE.npz (uint8 images and latents; latents alone where the run was trained "
    "on latents).",
)
@seed_option
@click.option("--stage", type=click.IntRange(0), help="Sample the prior after this many stages (default: all).")
@click.option(
    "--method",
    type=click.Choice(["auto", "chain", "smc", "sir"]),
    default="auto",
    show_default=True,
    help="auto: sir while it is enough, else smc; chain where the prior was learned on chains. chain: Langevin chains. "
    "smc: sequential Monte Carlo along the stages. sir: draws of p_0, resampled.",
)
def sample(run: str, num: int, out: str, seed: int, stage: int | None, method: str) -> None:
    """Draw samples from RUN's newest valid checkpoint.

    RUN may also be an export. The command prints diagnostics of the samples.
    """
    console.print(f"drawing {num} samples of {run}")
    from ebmscale.evaluate.sampling import draw  # noqa: PLC0415
    from ebmscale.model.pixels import to_images  # noqa: PLC0415
    from ebmscale.report.sample_pictures import sample_grid  # noqa: PLC0415

    target = output_file(out, (".png", ".npz"))
    model = ebmscale.load(run)
    if target.address.suffix == ".png" and not model.shows_images:
        raise ConfigError(f"The samples of {run} are not images; give --out FILE.npz.")
    if stage is not None:
        model = model.at_stage(stage)
    with Steps("drawing samples"):
        drawn = draw(model, num, method, seed)
        z, images = drawn.z, model.decode(drawn.z)
    if target.address.suffix == ".png":
        data = sample_grid(model, images, math.ceil(math.sqrt(num)))
    else:
        arrays = io.BytesIO()
        if model.is_given:
            np.savez_compressed(arrays, latents=images.numpy())
        elif model.shows_images:
            np.savez_compressed(arrays, images=to_images(images), z=z.numpy())
        else:
            np.savez_compressed(arrays, samples=images.numpy(), z=z.numpy())
        data = arrays.getvalue()
    target.publish(data)
    for line in drawn.lines():
        console.print(line)
    console.print(f"{num} samples in {out}")


@cli.command(epilog=example("ebmscale report runs/digits"))
@click.argument("run", type=ADDRESS)
def report(run: str) -> None:
    """Write RUN's report: one self-contained HTML page."""
    console.print(f"drawing samples of {run}, and its charts")
    from ebmscale.report.run_report import write_report  # noqa: PLC0415

    with Steps("writing the report"):
        url = write_report(output_folder(run))
    console.print(f"report   {url}")


@cli.command(epilog=example("ebmscale export runs/digits models/digits"))
@click.argument("run", type=ADDRESS)
@click.argument("folder", metavar="DIR", type=ADDRESS)
def export(run: str, folder: str) -> None:
    """Write RUN's model to DIR as safetensors and JSON.

    `ebmscale.load` opens it without Ray or DeepSpeed.
    """
    console.print(f"reading the model of {run}")
    target = output_folder(folder, "export")
    model = ebmscale.load(run)
    model.export(target)
    console.print(f"{model.prior.num_stages} stage(s), {model.samples_seen:,} samples seen: {folder}")
