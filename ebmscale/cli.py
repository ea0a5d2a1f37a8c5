"""The commands: they parse, call and print."""

import io
import logging
import math
import os
import re
import signal
import sys
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import Progress, TaskID
from rich.table import Table

import ebmscale
from ebmscale.config import RunConfig, load_config
from ebmscale.errors import ConfigError, EbmscaleError, Interrupted

console = Console(soft_wrap=True, highlight=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ebmscale.__version__, prog_name="ebmscale")
def cli() -> None:
    """Latent-space energy-based priors by adaptive multi-stage density ratio estimation."""


@cli.command()
@click.argument("config_file", metavar="CONFIG", type=click.Path(dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="One update of every kind, one save, one load; says what the run needs.")
@click.option("--all-ranks", is_flag=True, help="On Ray, show what every worker says and not only rank 0.")
def train(config_file: str, overrides: tuple[str, ...], dry_run: bool, all_ranks: bool) -> None:
    """Train a run, or resume it: the same command goes on where the run stopped."""
    from ebmscale.evaluate.report import write_report  # noqa: PLC0415 (commands import what they use)
    from ebmscale.runtime.worker import run_worker  # noqa: PLC0415
    from ebmscale.training.run import run_storage  # noqa: PLC0415

    config = load_config(config_file, overrides)
    if dry_run:
        _dry_run(config)
        return
    if config.ray.num_workers:
        from ebmscale.runtime.ray_train import train_on_ray  # noqa: PLC0415

        url, is_first = train_on_ray(config, console, all_ranks), True
    else:
        url, world = run_worker(config, console)
        is_first = world.is_first
    if is_first:
        report = write_report(run_storage(config))
        console.print(f"run      {url}\nsamples  {url}/samples.png\nmetrics  {url}/metrics.jsonl\nreport   {report}")


def _dry_run(config: RunConfig) -> None:
    from ebmscale.runtime.dryrun import dry_run  # noqa: PLC0415
    from ebmscale.world import World  # noqa: PLC0415

    forecast = dry_run(config, World.from_environment(config.device))
    table = Table(title="dry run: every part works; the run will need", show_header=False)
    table.add_row("parameters", "{:,} generator and encoder, {:,} a ratio".format(*forecast.num_parameters))
    table.add_row("updates", f"{forecast.num_batches:,}")
    table.add_row("seconds an update", f"{forecast.first_batch_s:.3f} at first, {forecast.last_batch_s:.3f} at the end")
    table.add_row("time", f"at most {forecast.train_s / 60:.1f} min")
    table.add_row("memory", f"{forecast.memory_bytes / 1e9:.2f} GB a process")
    free = "" if forecast.free_bytes is None else f", {forecast.free_bytes / 1e9:.1f} GB are free"
    table.add_row("a checkpoint", f"{forecast.checkpoint_bytes / 1e6:.1f} MB, {config.checkpoint.keep_last} kept{free}")
    console.print(table)


@cli.command()
@click.argument("run")
@click.option("-n", "num", type=click.IntRange(1), default=64, show_default=True, help="How many images.")
@click.option("--out", required=True, help="FILE.png (a grid) or FILE.npz (uint8 images and latents).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--stage", type=click.IntRange(0), help="From the prior after this many stages (default: all).")
def sample(run: str, num: int, out: str, seed: int, stage: int | None) -> None:
    """Draw samples from RUN's newest valid checkpoint, or from an export."""
    from ebmscale.evaluate.report import sample_grid  # noqa: PLC0415
    from ebmscale.storage import Storage  # noqa: PLC0415
    from ebmscale.training.tasks import to_images  # noqa: PLC0415

    if Path(out).suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out} must end in .png or .npz.")
    model = ebmscale.load(run)
    if stage is not None and stage > model.prior.num_stages:
        raise ConfigError(f"--stage {stage} is beyond the {model.prior.num_stages} stages that the run has.")
    z, _ = model.sample_prior(num, seed, stage)
    images = model.decode(z)
    if Path(out).suffix == ".png":
        data = sample_grid(model, images, math.ceil(math.sqrt(num)))
    else:
        arrays = io.BytesIO()
        np.savez_compressed(arrays, images=to_images(images), z=z.numpy())
        data = arrays.getvalue()
    Storage.at(Path(out).parent).publish(Path(out).name, data)
    console.print(f"{num} samples in {out}")


@cli.command()
@click.argument("run")
def report(run: str) -> None:
    """Write RUN's report: one self-contained HTML page."""
    from ebmscale.evaluate.report import write_report  # noqa: PLC0415
    from ebmscale.storage import Storage  # noqa: PLC0415

    console.print(f"report   {write_report(Storage.at(run))}")


@cli.command()
@click.argument("format_name", metavar="FORMAT")
@click.argument("src", metavar="SRC")
@click.argument("url", metavar="URL")
@click.option("--encoding", type=click.Choice(["raw", "png", "jpeg"]), help="Default: raw, for large images png.")
@click.option("--size", type=click.IntRange(1), help="folder, celeba: crop to the centre square, resize to this side.")
@click.option("--grey", is_flag=True, help="folder, celeba: one channel.")
@click.option("--attribute", metavar="NAME", help="celeba: label images by this attribute, as Smiling.")
@click.option("--shard-samples", type=click.IntRange(1), default=4096, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="That load and encode images (default: one a core).")
def pack(
    format_name: str,
    src: str,
    url: str,
    encoding: str | None,
    size: int | None,
    grey: bool,
    attribute: str | None,
    shard_samples: int,
    threads: int | None,
) -> None:
    """Pack a data set into shards; the same command goes on where it was killed.

    FORMAT is digits (embedded; SRC is -), idx (the MNIST family), cifar10, svhn, celeba, folder (of images; class =
    first folder below) or npy (arrays, latents: .npy, .npz or a folder of .npy). JPEG is of quality 95.
    """
    from ebmscale.data.formats import open_source  # noqa: PLC0415
    from ebmscale.data.pack import pack as write_shards  # noqa: PLC0415
    from ebmscale.storage import Storage  # noqa: PLC0415

    source = open_source(format_name, src, size=size, grey=grey, attribute=attribute)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"packing {format_name}")
        manifest = write_shards(
            source,
            Storage.at(url),
            encoding=encoding,
            shard_samples=shard_samples,
            num_threads=threads,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    skipped = f", {source.num_skipped:,} other files passed over" if source.num_skipped else ""
    console.print(f"{url}: {manifest.summary()}{skipped}")


@cli.command()
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="DIR")
@click.option("--mirror", metavar="URL", help="An address that has the same files, instead of the official ones.")
def fetch(name: str, folder: str, mirror: str | None) -> None:
    """Download a data set's official files to DIR: mnist, fashion_mnist, cifar10 or svhn; celeba: says how to get it.

    Checksums are verified; the same command goes on with what was broken off.
    """
    from ebmscale.data.fetch import fetch as download  # noqa: PLC0415

    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(file: str, num_bytes: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = progress.add_task(file)
            progress.update(tasks[file], completed=num_bytes, total=total)

        files = download(name, folder, mirror=mirror, progress=show)
    console.print(f"{name}: {', '.join(file.name for file in files)} in {folder}")


@cli.command()
@click.argument("url")
@click.option("--shape", help="C,H,W of raw .bin members, which do not carry it.")
def index(url: str, shape: str | None) -> None:
    """Write the manifest of WebDataset shards that others made: they are read once, and can then be trained on."""
    from ebmscale.data.index import index as write_manifest  # noqa: PLC0415
    from ebmscale.storage import Storage  # noqa: PLC0415

    if shape is not None and not re.fullmatch(r"\d+,\d+,\d+", shape):
        raise ConfigError(f"--shape {shape} must be three numbers, such as 3,32,32.")
    channels, height, width = map(int, (shape or "0,0,0").split(","))
    manifest = write_manifest(Storage.at(url), image_shape=(channels, height, width) if shape else None)
    console.print(f"{url}: {manifest.summary()}")


@cli.command()
@click.argument("url")
def inspect(url: str) -> None:
    """Say what a run, an export or a set of shards holds, and verify its checksums."""
    from ebmscale.runtime.inspection import inspect as examine  # noqa: PLC0415

    found = examine(url)
    console.print(found.title)
    table = Table(*found.columns)
    for row in found.rows:
        table.add_row(*row)
    console.print(table)
    if found.failure is not None:
        raise found.failure


@cli.command()
@click.argument("run")
@click.argument("folder", metavar="DIR")
def export(run: str, folder: str) -> None:
    """Write RUN's model as safetensors and JSON, which `ebmscale.load` opens without Ray or DeepSpeed."""
    from ebmscale.storage import Storage  # noqa: PLC0415

    model = ebmscale.load(run)
    model.export(Storage.at(folder))
    console.print(f"{model.prior.num_stages} stage(s), {model.samples_seen:,} samples seen: {folder}")


@cli.command()
@click.argument("config_file", metavar="[CONFIG]", required=False, type=click.Path(dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--address", metavar="URL", help="The cluster's job server, such as http://HEAD:8265.")
@click.option("--attach", metavar="ID", help="Follow a job that was submitted before.")
@click.option("--working-dir", default=".", show_default=True, help="Uploaded with the job, as ignore files allow.")
@click.option("--env", "-e", "passed_on", multiple=True, metavar="NAME[=VALUE]", help="A variable that the job gets.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job.")
@click.option("--all-ranks", is_flag=True, help="Show what every worker says and not only rank 0.")
def submit(
    config_file: str | None,
    overrides: tuple[str, ...],
    address: str | None,
    attach: str | None,
    working_dir: str,
    passed_on: tuple[str, ...],
    no_wait: bool,
    all_ranks: bool,
) -> None:
    """Train CONFIG as a job on a Ray cluster: checks, uploads, follows the log, and ends as the job does."""
    from ebmscale.runtime import submit as jobs  # noqa: PLC0415

    if (config_file is None) == (attach is None):
        raise ConfigError("Give a CONFIG to submit, or --attach ID to follow a job.")
    if config_file is not None:
        client, job = jobs.submit(
            config_file, overrides, address, console, working_dir=working_dir, passed_on=passed_on, all_ranks=all_ranks
        )
    else:
        client, job = jobs.connect(address), str(attach)
    if not no_wait:
        sys.exit(jobs.follow(client, job, lambda text: print(text, end="", flush=True)))


@cli.command()
@click.argument("config_file", metavar="CONFIG", type=click.Path(dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--workers", default="8,64,512,1024", show_default=True, help="Numbers of workers, with commas.")
@click.option("--bandwidth-gbit", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--latency-us", type=click.FloatRange(min=0), default=50.0, show_default=True)
@click.option("--measure/--no-measure", default=True, help="Time updates here; without, memory and messages alone.")
def plan(
    config_file: str, overrides: tuple[str, ...], workers: str, bandwidth_gbit: float, latency_us: float, measure: bool
) -> None:
    """Forecast memory, messages, time and efficiency of a run on many workers, from one measured here."""
    from ebmscale.runtime.plan import Network  # noqa: PLC0415
    from ebmscale.runtime.plan import plan as forecast  # noqa: PLC0415
    from ebmscale.runtime.plan_table import assumption_lines, breakdown_table, forecast_table  # noqa: PLC0415

    if not re.fullmatch(r"\d+(,\d+)*", workers):
        raise ConfigError(f"--workers {workers} must be numbers with commas, such as 8,64,512.")
    config = load_config(config_file, overrides)
    found = forecast(config, [int(size) for size in workers.split(",")], Network(bandwidth_gbit, latency_us), measure)
    console.print(forecast_table(found), breakdown_table(found, config), assumption_lines(found), sep="\n")


@cli.command()
def doctor() -> None:
    """Say what this machine can do, what is missing, and how to get it."""
    from ebmscale.runtime.doctor import examine  # noqa: PLC0415

    table = Table("", "what", "detail")
    for finding in examine():
        table.add_row({True: "ok", False: "FAIL", None: "-"}[finding.ok], finding.what, finding.detail)
    console.print(table)


def main() -> None:
    """The program: runs a command, and turns errors into one sentence and an exit code."""
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("ebmscale").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; training listens for itself
    try:
        cli(standalone_mode=False)
    except EbmscaleError as error:
        word = "stopped" if isinstance(error, Interrupted) else "error"
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"{word}: {error}")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(ConfigError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(Interrupted.exit_code)
