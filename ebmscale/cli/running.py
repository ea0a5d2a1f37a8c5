"""Commands that train, here or on a cluster."""

import os
import re
import sys

import click
from rich.table import Table

from ebmscale.cli.arguments import COMPARISON, config_argument, overrides_argument
from ebmscale.cli.group import Count, NumberRange, cli, console, example
from ebmscale.cli.outputs import ADDRESS
from ebmscale.config import RunConfig, load_config
from ebmscale.errors import ConfigError, EbmscaleError
from ebmscale.terminal import duration, shown_lines

MOST_S = 7 * 86400
"""A dry run ends early where the whole run would take longer, in seconds."""


@cli.command(epilog=example("ebmscale train preset:digits run.name=first train.max_samples=20000"))
@config_argument()
@overrides_argument
@click.option(
    "--dry-run",
    is_flag=True,
    help="Make one update of every kind, one save and one load, and print what the run needs.",
)
@click.option("--all-ranks", is_flag=True, help="On Ray, show the output of every worker and not only of rank 0.")
def train(config_file: str, overrides: tuple[str, ...], dry_run: bool, all_ranks: bool) -> None:
    """Train the run that CONFIG describes. The same command resumes a run that stopped.

    CONFIG is a YAML file, or a preset such as preset:digits (`ebmscale presets` lists them, `ebmscale keys` explains
    every KEY, and `ebmscale init` writes a file for your own images).
    """
    config = load_config(config_file, overrides)
    if dry_run:
        _dry_run(config)
        return
    if os.environ.get("RANK", "0") in ("", "0"):
        console.print(f"run {config.storage.url.below(config.run.name)}: it is opened, and its data are checked")
    if config.ray.num_workers:
        from ebmscale.runtime.ray_train import train_on_ray  # noqa: PLC0415 (commands import what they use)

        url, is_first = train_on_ray(config, console, all_ranks), True
    else:
        from ebmscale.runtime.worker import run_worker  # noqa: PLC0415

        url, world = run_worker(config, console)
        is_first = world.is_first
    if is_first:
        from ebmscale.model.run_folder import run_storage  # noqa: PLC0415
        from ebmscale.report.run_report import write_report  # noqa: PLC0415
        from ebmscale.storage import open_storage  # noqa: PLC0415

        report = write_report(run_storage(config), open_storage(config.data), config.checkpoint.retry_s)
        made = {"run": url, "samples": f"{url}/samples.png", "metrics": f"{url}/metrics.jsonl", "report": report}
        for name, place in made.items():
            console.print(f"{name:<8} {place}")


def _dry_run(config: RunConfig) -> None:
    from ebmscale.forecast.dry_run import dry_run  # noqa: PLC0415
    from ebmscale.world import World  # noqa: PLC0415

    console.print("dry run: an update of every kind is tried and timed")
    forecast = dry_run(config, World.from_environment(config.device), MOST_S)
    table = Table(title="dry run: every part works; the run will need", show_header=False)
    table.add_row("parameters", "{:,} generator and encoder, {:,} a ratio".format(*forecast.num_parameters))
    table.add_row("updates", f"{forecast.num_batches:,}")
    table.add_row("seconds an update", f"{forecast.first_batch_s:.3f} at first, {forecast.last_batch_s:.3f} at the end")
    table.add_row("time", f"at most {duration(forecast.train_s)}")
    table.add_row("memory", f"{forecast.memory_bytes / 1e9:.2f} GB a process")
    free = "" if forecast.free_bytes is None else f", {forecast.free_bytes / 1e9:.1f} GB are free"
    kept = f"at most {config.most_checkpoints} kept"
    table.add_row("a checkpoint", f"{forecast.checkpoint_bytes / 1e6:.1f} MB, {kept}{free}")
    console.print(table)


@cli.command(epilog=example("ebmscale submit preset:cifar10 --address http://HEAD:8265 ray.num_workers=8"))
@config_argument("[CONFIG]", required=False)
@overrides_argument
@click.option("--address", metavar="URL", help="The cluster's job server, such as http://HEAD:8265.")
@click.option("--attach", metavar="ID", help="Follow a job that was submitted before.")
@click.option(
    "--working-dir",
    default=".",
    show_default=True,
    help="Folder that is uploaded with the job, without ignored files and files of secrets.",
)
@click.option(
    "--env",
    "-e",
    "passed_on",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A variable for the job. Give no secret: everybody on the cluster can read it.",
)
@click.option("--no-wait", is_flag=True, help="Do not follow the job.")
@click.option("--all-ranks", is_flag=True, help="Show the output of every worker and not only of rank 0.")
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
    """Train CONFIG as a job on a Ray cluster.

    The command checks and uploads the job, follows its log, and ends with its exit code.
    """
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
        sys.exit(jobs.follow(client, job, lambda text: print(shown_lines(text), end="", flush=True)))


@cli.command(epilog=example("ebmscale plan preset:cifar10 --workers 8,64"))
@config_argument()
@overrides_argument
@click.option("--workers", default="8,64,512,1024", show_default=True, help="Numbers of workers, with commas.")
@click.option(
    "--bandwidth-gbit",
    type=NumberRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Bandwidth of the network between workers, in Gbit/s.",
)
@click.option(
    "--latency-us",
    type=NumberRange(min=0),
    default=50.0,
    show_default=True,
    help="Time of a message between workers, in microseconds.",
)
@click.option(
    "--measure/--no-measure", default=True, help="Time updates on this machine, or forecast memory and messages alone."
)
def plan(
    config_file: str, overrides: tuple[str, ...], workers: str, bandwidth_gbit: float, latency_us: float, measure: bool
) -> None:
    """Forecast time, memory and messages of a run on many workers.

    The forecast starts from one worker, which is measured on this machine.
    """
    console.print(f"one worker is measured on this machine{'' if measure else ', without timing'}")
    from ebmscale.forecast.plan import Network  # noqa: PLC0415
    from ebmscale.forecast.plan import plan as forecast  # noqa: PLC0415
    from ebmscale.forecast.table import assumption_lines, breakdown_table, forecast_table  # noqa: PLC0415

    if not re.fullmatch(r"\d+(,\d+)*", workers):
        raise ConfigError(f"--workers {workers} must be numbers with commas, such as 8,64,512.")
    config = load_config(config_file, overrides)
    found = forecast(config, [int(size) for size in workers.split(",")], Network(bandwidth_gbit, latency_us), measure)
    console.print(forecast_table(found), breakdown_table(found, config), *assumption_lines(found), sep="\n")


@cli.command(epilog=example("ebmscale compare preset:compare/digits --methods gaussian,adaptive --seeds 3"))
@click.argument("comparison_file", metavar="FILE", type=COMPARISON)
@overrides_argument
@click.option("--methods", help="Rows of the file, with commas (default: all).")
@click.option("--seeds", type=Count(1), default=3, show_default=True, help="Number of seeds of each row.")
@click.option("--jobs", type=Count(1), default=1, show_default=True, help="Number of runs at the same time.")
@click.option(
    "--features",
    metavar="URL",
    type=ADDRESS,
    help="For the Frechet distance: efficientnet_lite0, or what `ebmscale features train` wrote.",
)
def compare(
    comparison_file: str,
    overrides: tuple[str, ...],
    methods: str | None,
    seeds: int,
    jobs: int,
    features: str | None,
) -> None:
    """Train and evaluate the rows of FILE under one budget.

    Every row is trained with several seeds; the results are one table and one page. FILE is a comparison (see
    configs/compare/) or a training configuration. Of a configuration every method is a row. The same command continues
    a comparison that stopped.
    """
    console.print(f"comparing the rows of {comparison_file} with {seeds} seed(s) each")
    from ebmscale.compare import compare as run_comparison  # noqa: PLC0415
    from ebmscale.forecast.dry_run import dry_run  # noqa: PLC0415
    from ebmscale.world import World  # noqa: PLC0415

    names = [name.strip() for name in methods.split(",")] if methods is not None else None
    results, table, url = run_comparison(
        comparison_file,
        names,
        seeds,
        overrides,
        lambda config, cpu_s: dry_run(config, World.alone()).costs.samples_within(cpu_s),
        console.print,
        jobs,
        features,
    )
    for line in table.splitlines():
        console.print(line)
    console.print(f"page     {url}")
    failed = [result for result in results if result.failure]
    if failed:
        raise EbmscaleError(f"{len(failed)} of {len(results)} runs failed, the first with: {failed[0].failure}")
