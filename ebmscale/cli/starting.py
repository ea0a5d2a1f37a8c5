"""Commands with which work begins: presets, the meaning of keys, a first configuration."""

import shutil
from pathlib import Path

import click
from rich.padding import Padding

from ebmscale.cli.arguments import KeyPrefix
from ebmscale.cli.group import cli, console, example
from ebmscale.config.presets import FOLDER, PREFIX
from ebmscale.config.presets import presets as all_presets
from ebmscale.config.table import find_keys
from ebmscale.errors import ConfigError

CLUSTER_FILES = FOLDER.with_name("cluster_files")
UNCOPIED = shutil.ignore_patterns("__pycache__", "*.md")


@cli.command(epilog=example("ebmscale presets --copy examples"))
@click.option("--copy", metavar="DIR", type=click.Path(file_okay=False), help="Write the files to DIR/configs too.")
def presets(copy: str | None) -> None:
    """List the configurations, comparisons and search spaces that come with the program.

    Every command takes their names in place of a file. With --copy they are written to DIR/configs, and the files for
    clusters to DIR/cluster, so that they can be changed.
    """
    known = all_presets()
    width = max(len(one.name) for one in known)
    for one in known:
        console.print(f"{PREFIX}{one.name:<{width}}  {one.about}")
    if copy is not None:
        _copy(Path(copy))


def _copy(folder: Path) -> None:
    targets = {FOLDER: folder / "configs", CLUSTER_FILES: folder / "cluster"}
    for target in targets.values():
        if target.exists():
            raise ConfigError(f"{target} is already there; give --copy another folder.")
    try:
        for source, target in targets.items():
            shutil.copytree(source, target, ignore=UNCOPIED)
    except OSError as error:
        raise ConfigError(f"The files cannot be written to {folder}: {error.strerror or error}.") from None
    console.print(f"files in {targets[FOLDER]} and {targets[CLUSTER_FILES]}")


@cli.command(epilog=example("ebmscale keys train.generator"))
@click.argument("prefix", metavar="[PREFIX]", default="", type=KeyPrefix())
def keys(prefix: str) -> None:
    """Explain the keys of a configuration that begin with PREFIX, or all keys.

    Each has its meaning, its values and its default.
    """
    for row in find_keys(prefix):
        change = "may change at a resume" if row.may_change else "fixed for a run"
        default = "has no default" if row.default == "needed" else f"default {row.default}"
        console.print(row.name, style="bold")
        for line in (row.meaning, f"{row.values}; {default}; {change}"):
            console.print(
                Padding(line, (0, 0, 0, 4)) if console.is_terminal else f"    {line}", soft_wrap=not console.is_terminal
            )
