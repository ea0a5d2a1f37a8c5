"""Commands that examine a run, a set or this machine."""

import click
from rich.table import Table

from ebmscale.cli.group import cli, console, example
from ebmscale.cli.outputs import ADDRESS
from ebmscale.cli.progress import Steps


@cli.command(epilog=example("ebmscale inspect runs/digits"))
@click.argument("url", type=ADDRESS)
@click.option("--verify", is_flag=True, help="Read a whole set of shards and check every sample.")
def inspect(url: str, verify: bool) -> None:
    """Show what URL holds, and whether it is sound.

    URL is a run, an export or a set of shards. Every checksum of a run and of an export is verified. Of a set of shards
    the sizes of the files are compared with the manifest; --verify reads all of it.
    """
    from ebmscale.model.inspection import inspect as examine  # noqa: PLC0415

    with Steps("reading everything" if verify else "reading"):
        found = examine(url, verify)
    console.print(found.title)
    table = Table(*found.columns)
    for row in found.rows:
        table.add_row(*row)
    console.print(table)
    if found.failure is not None:
        raise found.failure


@cli.command(epilog=example("ebmscale doctor"))
def doctor() -> None:
    """Show what this machine can do, and how to get what is missing."""
    from ebmscale.runtime.doctor import examine  # noqa: PLC0415

    table = Table("", "what", "detail")
    for finding in examine():
        table.add_row({True: "ok", False: "FAIL", None: "-"}[finding.ok], finding.what, finding.detail)
    console.print(table)
