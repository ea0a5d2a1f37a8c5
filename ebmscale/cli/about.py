"""Commands that examine a run, a set or this machine."""

import click
from rich.table import Table

from ebmscale.cli.group import cli, console, example
from ebmscale.cli.outputs import ADDRESS


@cli.command(epilog=example("ebmscale inspect runs/digits"))
@click.argument("url", type=ADDRESS)
def inspect(url: str) -> None:
    """Show what the run, the export or the set of shards at URL holds, and verify its checksums."""
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
    """Show what this machine can do, what is missing, and how to get it."""
    from ebmscale.runtime.doctor import examine  # noqa: PLC0415

    table = Table("", "what", "detail")
    for finding in examine():
        table.add_row({True: "ok", False: "FAIL", None: "-"}[finding.ok], finding.what, finding.detail)
    console.print(table)
