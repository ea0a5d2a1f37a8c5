"""Commands that make data sets."""

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from ebmscale.cli.group import Count, NumberRange, cli, console, example
from ebmscale.cli.outputs import ADDRESS, output_folder
from ebmscale.cli.progress import Steps
from ebmscale.cli.workers import worker_options, workers_of
from ebmscale.errors import ConfigError

if TYPE_CHECKING:
    from ebmscale.data.formats import Source
    from ebmscale.storage import Storage


@cli.command(epilog=example("ebmscale pack folder photos data/photos --size 64"))
@click.argument("format_name", metavar="FORMAT")
@click.argument("src", metavar="SRC", type=ADDRESS)
@click.argument("url", metavar="URL", type=ADDRESS)
@click.option(
    "--encoding",
    type=click.Choice(["raw", "png", "jpeg"]),
    help="How a sample is stored (default: raw, png for large images).",
)
@click.option("--size", type=Count(1), help="folder, celeba: crop to the centre square and resize it to this side.")
@click.option("--grey", is_flag=True, help="folder, celeba: one channel instead of three.")
@click.option("--attribute", metavar="NAME", help="celeba: label images by this attribute, such as Smiling.")
@click.option("--shard-samples", type=Count(1), default=4096, show_default=True, help="Most samples of a shard.")
@click.option("--threads", type=Count(1), help="Threads that load and encode images (default: one for each core).")
@click.option(
    "--test-fraction",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Make this share of the train samples the test part, for sets that have none.",
)
@click.option(
    "--max-damaged",
    type=NumberRange(0, 1),
    metavar="SHARE",
    default=0.01,
    show_default=True,
    help="Largest share of the samples that may be left out because they cannot be used.",
)
@worker_options
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
    test_fraction: float | None,
    max_damaged: float,
    num_workers: int | None,
    ray_address: str | None,
) -> None:
    """Pack the data set at SRC into shards at URL.

    The same command continues a pack that was interrupted.

    FORMAT is digits (embedded; SRC is -), idx (the MNIST family), cifar10, svhn, celeba, folder (any images; the class
    is the first folder below) or npy (arrays or latents: .npy, .npz or a folder of .npy).

    The words train, val and test in the names of folders, files and arrays (train2017, x_test) say the set's parts.
    A picture that cannot be read, or has another size than the others, is left out and listed in URL/left_out.json.
    JPEG has quality 95. A set that is already packed is compared with its source; if they differ, an error says how.
    """
    from ebmscale.data.names import printable  # noqa: PLC0415
    from ebmscale.data.pack import pack as write_shards  # noqa: PLC0415
    from ebmscale.data.pack_parts import PackJob, SourceOptions  # noqa: PLC0415
    from ebmscale.data.packed import packed_manifest  # noqa: PLC0415
    from ebmscale.machine import num_cpus  # noqa: PLC0415
    from ebmscale.runtime.parts import run_parts  # noqa: PLC0415

    workers = workers_of(num_workers, ray_address)
    options = SourceOptions(format_name, src, size, grey, attribute, test_fraction)
    source = options.open()
    storage = output_folder(url, "packed set")
    _say_if_untrainable(source)
    with Steps(f"packing {format_name}", "samples") as show:
        already = packed_manifest(source, storage, encoding, num_threads=threads, progress=show)
        if already or workers is None:
            manifest = already or write_shards(
                source,
                storage,
                encoding=encoding,
                shard_samples=shard_samples,
                num_threads=threads,
                max_damaged=max_damaged,
                progress=show,
            )
        else:
            job = PackJob.of(
                options,
                source,
                storage,
                encoding=encoding,
                shard_samples=shard_samples,
                num_threads=threads or (max(num_cpus() // workers.num, 1) if workers.address is None else 1),
                max_damaged=max_damaged,
            )
            run_parts(job, workers, show)
            show.say("joining the parts")
            manifest = job.finish(source)
    state = "already packed, its source has not changed: " if already else ""
    notes = [f"{source.num_skipped:,} other files skipped"] if source.num_skipped else []
    notes += [*_left_out(storage), *source.notes]
    console.print("; ".join([f"{printable(url)}: {state}{manifest.summary()}", *notes]), markup=False)


def _say_if_untrainable(source: "Source") -> None:
    """Says before a pack that no network makes such images."""
    from ebmscale.networks import check_side  # noqa: PLC0415

    if source.dtype != "uint8" or len(source.image_shape) != 3:
        return
    channels, height, width = source.image_shape
    try:
        check_side((channels, height, width))
    except ConfigError as error:
        console.print(f"note: this set cannot be trained on with the built-in networks. {error}")


def _left_out(storage: "Storage") -> list[str]:
    """What to say of the samples that were left out of the set."""
    from ebmscale.data.left_out import FILE, LeftOutList  # noqa: PLC0415

    num = len(LeftOutList.load(storage).samples)
    return [f"{num:,} damaged or unfitting sample(s) left out, listed in {storage.url_of(FILE)}"] if num else []


@cli.command(epilog=example("ebmscale fetch mnist downloads/mnist"))
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="DIR", type=ADDRESS)
@click.option(
    "--mirror", metavar="URL", type=ADDRESS, help="An address that has the same files, instead of the official ones."
)
def fetch(name: str, folder: str, mirror: str | None) -> None:
    """Download the official files of a data set to DIR.

    Checksums are verified. NAME is mnist, fashion_mnist, cifar10 or svhn. For celeba the command says how to get the
    files. The same command continues a download that was interrupted.
    """
    from ebmscale.data.fetch import fetch as download  # noqa: PLC0415

    with ExitStack() as stack:
        tasks: dict[str, Steps] = {}

        def show(file: str, num_bytes: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = stack.enter_context(Steps(file, "bytes"))
            tasks[file](num_bytes, total)

        files = download(name, folder, mirror=mirror, progress=show)
    console.print(f"{name}: {', '.join(file.name for file in files)} in {folder}")


@cli.command(epilog=example("ebmscale index s3://BUCKET/shards"))
@click.argument("url", type=ADDRESS)
@click.option("--shape", metavar="C,H,W", help="Shape of raw .bin members, which do not contain it.")
def index(url: str, shape: str | None) -> None:
    """Write manifest and indexes for the WebDataset shards at URL.

    Others may have made the shards. With manifest and indexes the shards can be trained on. Every shard at URL is read
    once. The words train, val and test in a shard's name say its part. The last line counts what was left out of the
    set.

    Of a set that `pack` wrote, only what is missing is written: indexes that are missing, damaged, or do not fit their
    shard, and all of them if the set was packed by an earlier version.
    """
    from ebmscale.data.index import index as write_manifest  # noqa: PLC0415
    from ebmscale.data.names import printable  # noqa: PLC0415

    if shape is not None and not re.fullmatch(r"\d+,\d+,\d+", shape):
        raise ConfigError(f"--shape {shape} must be three numbers, such as 3,32,32.")
    channels, height, width = map(int, (shape or "0,0,0").split(","))
    notes: list[str] = []
    shape_of_bin = (channels, height, width) if shape else None
    with Steps("reading shards"):
        manifest = write_manifest(output_folder(url, "packed set"), image_shape=shape_of_bin, note=notes.append)
    console.print("; ".join([f"{printable(url)}: {manifest.summary()}", *notes]), markup=False)
