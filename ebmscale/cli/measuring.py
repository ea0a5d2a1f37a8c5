"""Commands that measure a trained run."""

from typing import TYPE_CHECKING

import click
from rich.table import Table

from ebmscale.cli.group import cli, console, example, seed_option
from ebmscale.cli.outputs import ADDRESS, output_folder
from ebmscale.cli.progress import Steps
from ebmscale.cli.workers import worker_options, workers_of
from ebmscale.errors import ConfigError

if TYPE_CHECKING:
    from ebmscale.evaluate.metrics import MetricValues
    from ebmscale.storage import Storage

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute. auto: on a GPU if there is one.",
)


def _counts(context: click.Context, parameter: click.Parameter, text: str | None) -> dict[str, int]:
    """Numbers of images by metric; that of the others has the name ''."""
    found: dict[str, int] = {}
    for word in (text or "").split(",") if text else []:
        name, _, number = word.rpartition("=")
        if not (number.isascii() and number.isdigit() and int(number) > 0):
            raise click.BadParameter(f"{word!r} is not a whole number above 0, such as 5000 or likelihood=64.")
        if name.strip() in found:
            raise click.BadParameter(f"{text!r} gives two numbers for {name.strip() or 'all metrics'}; give one.")
        found[name.strip()] = int(number)
    return found


@cli.command(epilog=example("ebmscale evaluate runs/digits --split validation --metrics reconstruction,likelihood"))
@click.argument("run", type=ADDRESS)
@click.option(
    "--data", "url", metavar="URL", type=ADDRESS, help="A packed set (default: the one that the run was trained on)."
)
@click.option(
    "--metrics",
    help="One or more, with commas: reconstruction, prior, frechet, ceiling, latents, anomaly, baselines, likelihood "
    "(default: reconstruction and prior, and frechet if --features is given).",
)
@click.option(
    "--features",
    "urls",
    metavar="URL",
    type=ADDRESS,
    multiple=True,
    help="For frechet and ceiling: efficientnet_lite0, what `ebmscale features train` wrote, or a file of Inception "
    "weights; it may be given several times.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    help="Samples to measure on (default: test, or validation where the set has no test part).",
)
@click.option(
    "--num-samples",
    "counts",
    metavar="N",
    callback=_counts,
    help="At most this many images, and for frechet this many samples (default: 10,000 for frechet, ceiling and "
    "latents, 256 for prior, 64 for likelihood, else all). With METRIC=N, also with commas, only for that metric: "
    "5000,likelihood=64.",
)
@worker_options
@seed_option
@click.option("--stage", type=click.IntRange(0), help="Measure the prior after this many stages (default: all).")
@device_option
def evaluate(
    run: str,
    url: str | None,
    metrics: str | None,
    urls: tuple[str, ...],
    split: str | None,
    counts: dict[str, int],
    num_workers: int | None,
    ray_address: str | None,
    seed: int,
    stage: int | None,
    device: str,
) -> None:
    """Measure RUN's newest valid checkpoint on held-out data.

    The values are printed as a table, and written as JSON to RUN's folder `evaluation`. The splits, and the class that
    was held out as anomalies, are those of RUN's configuration. Under `torchrun -m ebmscale` its ranks share the work.
    """
    from ebmscale.evaluate.features import open_features  # noqa: PLC0415 (commands import what they use)
    from ebmscale.evaluate.images import measured_split  # noqa: PLC0415
    from ebmscale.evaluate.metric_parts import MetricJob, Question  # noqa: PLC0415
    from ebmscale.evaluate.metrics import (  # noqa: PLC0415
        WITH_FEATURES,
        check_metrics,
        check_names,
        default_metrics,
        measure_metric,
        prepare,
    )
    from ebmscale.model.load import open_model  # noqa: PLC0415
    from ebmscale.model.run_folder import data_of  # noqa: PLC0415
    from ebmscale.runtime.parts import run_parts  # noqa: PLC0415
    from ebmscale.storage import Storage  # noqa: PLC0415
    from ebmscale.world import World, device_of  # noqa: PLC0415

    place, world = device_of(device), World.from_environment("cpu")
    workers = workers_of(num_workers, ray_address, device)
    if world.size > 1 and workers is not None:
        raise ConfigError("Under torchrun the ranks share the work; leave out --workers.")
    asked = [name.strip() for name in metrics.split(",")] if metrics else None
    check_names([*(asked or []), *(name for name in counts if name)])
    features = next(iter(urls), None)
    storage = output_folder(run) if world.is_first else Storage.at(run)
    model = open_model(storage).to(place)
    names = asked or default_metrics(features, model.is_given)
    check_metrics(names, features, model.is_given)
    if unused := [name for name in counts if name and name not in names]:
        raise ConfigError(
            f"--num-samples {unused[0]}={counts[unused[0]]} is for a metric that --metrics does not name."
        )
    if stage is not None:
        model = model.at_stage(stage)
    way_out = "give its address with --data"
    data = data_of(model.config, way_out) if url is None else Storage.at(url)
    networks = {one: open_features(one, place) for one in urls if set(WITH_FEATURES) & set(names)}
    if split is None:
        split = measured_split(model, data)
        if split == "validation" and world.is_first:
            console.print(f"{data.url} has no test part, so the run is measured on its validation part.")
    several = [(name, one) for name in names for one in (urls if name in WITH_FEATURES and urls else (None,))]
    for name, one in several:
        num, network = counts.get(name, counts.get("")), None if one is None else networks[one]
        with Steps(name, "images", shown=world.is_first) as show:
            what = data, name, network, split, num, seed, world, (data, storage), show
            if workers is None:
                found = measure_metric(model, *what)
            else:
                prepared = prepare(model, *what)
                question = Question(storage, stage, data, name, one, split, num, seed, device)
                job = MetricJob.of(question, prepared)
                run_parts(job, workers, show)
                found = job.joined(prepared, workers.num)
                job.files.remove()
        if world.is_first:
            _show(found, storage, "latents" if model.is_given else "images")


def _show(found: "MetricValues", storage: "Storage", what: str) -> None:
    """Prints what was measured on which samples, and keeps its record in the run."""
    from ebmscale.evaluate.rounding import rounded, with_error  # noqa: PLC0415

    about = found.protocol
    table = Table("metric", "value", title=f"{found.metric}, {about['num_images']:,} {what} of {about['split']}")
    for key, value in found.values.items():
        error = found.values.get(f"{key}_error")
        if error is not None:
            table.add_row(key, with_error(value, error))
        elif not key.endswith("_error"):
            table.add_row(key, rounded(value, 4))
    console.print(table)
    for verdict in found.verdicts():
        console.print(str(verdict))
    found.save(storage)
    console.print(f"record   {storage.url_of(found.file)}")
