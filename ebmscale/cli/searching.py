"""Commands that search for good settings."""

import click

from ebmscale.cli.group import cli, console
from ebmscale.config import load_config


@cli.command()
@click.argument("config_file", metavar="CONFIG", type=click.Path(dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--space", "space_file", required=True, metavar="FILE", help="What is tried (see configs/tune).")
def tune(config_file: str, overrides: tuple[str, ...], space_file: str) -> None:
    """Search for good settings of CONFIG on Ray: the same command goes on where a search stopped."""
    from ebmscale.runtime.ray_search import search  # noqa: PLC0415
    from ebmscale.runtime.search_view import trials_table  # noqa: PLC0415
    from ebmscale.search.space import load_space  # noqa: PLC0415

    config, space = load_config(config_file, overrides), load_space(space_file)
    ledger = search(config, space, console)
    console.print(trials_table(ledger))
