"""Commands that examine a run, a set or this machine."""

import click
from rich.table import Table

from ebmscale.cli.group import cli, console, example
from ebmscale.cli.outputs import ADDRESS


@cli.command(epilog=example("ebmscale inspect runs/digits"))
@click.argument("url", type=ADDRESS)
def inspect(url: str) -> None:
    """Show what URL holds, and verify its checksums.

    URL is a run, an export or a set of shards.
    """
    from ebmscale.model.inspection import inspect as examine  # noqa: PLC0415

    found = examine(url)
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
