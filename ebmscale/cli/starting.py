"""Commands with which work begins: presets, the meaning of keys, a first configuration."""

import os
import shlex
import shutil
import uuid
from pathlib import Path

import click
from rich.padding import Padding

from ebmscale.cli.arguments import KeyPrefix
from ebmscale.cli.group import NumberRange, cli, console, example
from ebmscale.cli.outputs import ADDRESS, output_path
from ebmscale.config.presets import FOLDER, PREFIX
from ebmscale.config.presets import presets as all_presets
from ebmscale.config.table import find_keys
from ebmscale.errors import ConfigError, DataError, StorageError
from ebmscale.faults import sentence
from ebmscale.local_files import TEMPORARY, create_file
from ebmscale.terminal import duration

CLUSTER_FILES = FOLDER.with_name("cluster_files")
UNCOPIED = shutil.ignore_patterns("__pycache__", "*.md")


@cli.command(epilog=example("ebmscale presets --copy examples"))
@click.option("--copy", metavar="DIR", type=click.Path(file_okay=False), help="Write the files to DIR/configs too.")
def presets(copy: str | None) -> None:
    """List the configurations that come with the program.

    The comparisons and the search spaces are listed too. Every command takes their names in place of a file. With
    --copy they are written to DIR/configs, and the files for clusters to DIR/cluster, so that they can be changed.
    """
    known = all_presets()
    width = max(len(one.name) for one in known)
    for one in known:
        console.print(f"{PREFIX}{one.name:<{width}}  {one.about}")
    if copy is not None:
        _copy(output_path(copy, "--copy"))


def _copy(folder: Path) -> None:
    targets = {FOLDER: folder / "configs", CLUSTER_FILES: folder / "cluster"}
    half = [target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}") for target in targets.values()]
    try:
        for target in targets.values():
            if target.exists():
                raise ConfigError(f"{target} already exists; give --copy another folder.")
        for source, made in zip(targets, half, strict=True):
            shutil.copytree(source, made, ignore=UNCOPIED)
        for made, target in zip(half, targets.values(), strict=True):
            made.rename(target)
    except OSError as error:
        several = isinstance(error, shutil.Error)  # a list of (source, target, reason)
        why = str(error.args[0][0][2]).partition(": '")[0] if several else error.strerror or error
        raise StorageError(f"The files cannot be written to {folder}: {why}.") from None
    finally:
        for made in half:
            shutil.rmtree(made, ignore_errors=True)
    console.print(f"files in {targets[FOLDER]} and {targets[CLUSTER_FILES]}")


@cli.command(epilog=example("ebmscale keys train.generator"))
@click.argument("prefix", metavar="[PREFIX]", default="", type=KeyPrefix())
def keys(prefix: str) -> None:
    """Explain the keys of a configuration.

    With PREFIX, only the keys that begin with it. Each has its meaning, its values and its default.
    """
    for row in find_keys(prefix):
        change = "may change at a resume" if row.may_change else "fixed for a run"
        default = "has no default" if row.default == "needed" else f"default {row.default}"
        console.print(row.name, style="bold")
        for line in (row.meaning, f"{row.values}; {default}; {change}"):
            console.print(
                Padding(line, (0, 0, 0, 4)) if console.is_terminal else f"    {line}", soft_wrap=not console.is_terminal
            )


@cli.command(epilog=example("ebmscale init data/photos --out my.yaml"))
@click.argument("url", metavar="DATA", type=ADDRESS)
@click.option("--out", metavar="FILE", type=click.Path(dir_okay=False), help="The file (default: NAME.yaml of DATA).")
@click.option(
    "--minutes",
    type=NumberRange(min=0, min_open=True),
    help="Minutes that the run may take; the shortest run may take more.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the run will train. auto: on a GPU if there is one.",
)
def init(url: str, out: str | None, minutes: float | None, device: str) -> None:
    """Write a configuration for the packed set at DATA.

    It suits the set and this machine. The file says in comments what its keys do. Updates are tried and timed first, so
    the command also says how long the run takes. A file that exists is left as it is.
    """
    from ebmscale.data.manifest import Manifest  # noqa: PLC0415 (commands import what they use)
    from ebmscale.forecast.config_text import name_for  # noqa: PLC0415
    from ebmscale.forecast.first_config import timed_config  # noqa: PLC0415
    from ebmscale.forecast.pack_offer import pack_offer  # noqa: PLC0415
    from ebmscale.storage import Storage  # noqa: PLC0415

    storage, file = Storage.at(url), output_path(f"{name_for(url)}.yaml" if out is None else out, "--out")
    try:
        is_there = file.exists()
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}.") from None
    if is_there:
        raise ConfigError(f"{file} already exists and is not overwritten; give --out another name.")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{file} cannot be written: its folder is missing or not writable; give --out another place.")
    offer = pack_offer(storage, url)
    if offer is not None:
        raise DataError(offer)
    manifest = Manifest.load(storage)
    console.print(f"{manifest.summary()}; updates are timed now")
    text, seconds = timed_config(manifest, url, str(file), device, minutes * 60 if minutes else None)
    try:
        create_file(file, text.encode())
    except FileExistsError:
        raise ConfigError(f"{file} was made by another process meanwhile; give --out another name.") from None
    except OSError as error:
        raise StorageError(f"{sentence(f'write {file}', error)} Then run the same command again.") from None
    console.print(f"{file} is written; its run takes at most {duration(seconds)} on this machine:")
    console.print(f"    ebmscale train {shlex.quote(str(file))}")
