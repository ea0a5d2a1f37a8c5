"""Commands that make data sets."""

import re

import click
from rich.progress import TaskID

from ebmscale.cli.group import cli, console, example
from ebmscale.cli.outputs import ADDRESS, output_folder
from ebmscale.errors import ConfigError
from ebmscale.terminal import progress_on


@cli.command(epilog=example("ebmscale pack folder photos data/photos --size 64"))
@click.argument("format_name", metavar="FORMAT")
@click.argument("src", metavar="SRC", type=ADDRESS)
@click.argument("url", metavar="URL", type=ADDRESS)
@click.option(
    "--encoding",
    type=click.Choice(["raw", "png", "jpeg"]),
    help="How a sample is stored (default: raw, png for large images).",
)
@click.option(
    "--size", type=click.IntRange(1), help="folder, celeba: crop to the centre square and resize it to this side."
)
@click.option("--grey", is_flag=True, help="folder, celeba: one channel instead of three.")
@click.option("--attribute", metavar="NAME", help="celeba: label images by this attribute, such as Smiling.")
@click.option(
    "--shard-samples", type=click.IntRange(1), default=4096, show_default=True, help="Most samples of a shard."
)
@click.option(
    "--threads", type=click.IntRange(1), help="Threads that load and encode images (default: one for each core)."
)
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
    """Pack the data set at SRC into shards at URL.

    The same command continues a pack that was interrupted.

    FORMAT is digits (embedded; SRC is -), idx (the MNIST family), cifar10, svhn, celeba, folder (any images; the class
    is the first folder below) or npy (arrays or latents: .npy, .npz or a folder of .npy).

    The words train, val and test in the names of folders, files and arrays (train2017, x_test) say the set's parts.
    JPEG has quality 95. A set that is already packed is compared with its source; if they differ, an error says how.
    """
    from ebmscale.data.formats import open_source  # noqa: PLC0415
    from ebmscale.data.names import printable  # noqa: PLC0415
    from ebmscale.data.pack import pack as write_shards  # noqa: PLC0415
    from ebmscale.data.packed import packed_manifest  # noqa: PLC0415

    source = open_source(format_name, src, size=size, grey=grey, attribute=attribute)
    storage = output_folder(url)
    with progress_on(console) as progress:
        task = progress.add_task(f"packing {format_name}")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        already = packed_manifest(source, storage, encoding, num_threads=threads, progress=show)
        manifest = already or write_shards(
            source, storage, encoding=encoding, shard_samples=shard_samples, num_threads=threads, progress=show
        )
    state = "already packed, its source has not changed: " if already else ""
    skipped = [f"{source.num_skipped:,} other files skipped"] if source.num_skipped else []
    console.print("; ".join([f"{printable(url)}: {state}{manifest.summary()}", *skipped, *source.notes]), markup=False)


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

    with progress_on(console) as progress:
        tasks: dict[str, TaskID] = {}

        def show(file: str, num_bytes: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = progress.add_task(file)
            progress.update(tasks[file], completed=num_bytes, total=total)

        files = download(name, folder, mirror=mirror, progress=show)
    console.print(f"{name}: {', '.join(file.name for file in files)} in {folder}")


@cli.command(epilog=example("ebmscale index s3://BUCKET/shards"))
@click.argument("url", type=ADDRESS)
@click.option("--shape", metavar="C,H,W", help="Shape of raw .bin members, which do not contain it.")
def index(url: str, shape: str | None) -> None:
    """Write the manifest and the indexes of WebDataset shards that others made.

    With them the shards can be trained on. Every shard at URL is read once. The words train, val and test in a shard's
    name say its part. The last line counts what was left out of the set.

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
    manifest = write_manifest(output_folder(url), image_shape=shape_of_bin, note=notes.append)
    console.print("; ".join([f"{printable(url)}: {manifest.summary()}", *notes]), markup=False)
