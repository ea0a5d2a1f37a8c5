"""Commands that search for good settings."""

import click

from ebmscale.cli.arguments import SPACE, config_argument, overrides_argument
from ebmscale.cli.group import cli, console, example
from ebmscale.config import load_config
from ebmscale.terminal import Terminal

TABLE_WIDTH = 200  # where the output is not a terminal


@cli.command(epilog=example("ebmscale tune preset:digits --space preset:tune/digits"))
@config_argument()
@overrides_argument
@click.option(
    "--space", "space_file", required=True, metavar="FILE", type=SPACE, help="The search space (see configs/tune)."
)
def tune(config_file: str, overrides: tuple[str, ...], space_file: str) -> None:
    """Search for good settings of CONFIG on Ray. The same command continues a search that stopped.

    The search is kept in the folder tune-NAME beside the run NAME that `ebmscale train` makes of CONFIG.
    """
    from ebmscale.search import evaluation as objective  # noqa: PLC0415
    from ebmscale.search.check import base_config  # noqa: PLC0415
    from ebmscale.search.driver import search  # noqa: PLC0415
    from ebmscale.search.files import write_search  # noqa: PLC0415
    from ebmscale.search.space import load_space  # noqa: PLC0415
    from ebmscale.search.trial import own_place  # noqa: PLC0415
    from ebmscale.search.view import front_table, trials_table  # noqa: PLC0415

    config, space = own_place(load_config(config_file, overrides)), load_space(space_file)
    objective.check(space, base_config(config, space))
    ledger = search(config, space, console, objective.measure_run, objective.names)
    written = write_search(ledger.store, ledger.config, ledger.space, list(ledger.records.values()))
    wide = console if console.is_terminal else Terminal(width=TABLE_WIDTH)
    wide.print(trials_table(ledger))
    if len(space.objectives) > 1:
        wide.print(front_table(ledger))
    for name, url in zip(("best", "page", "table", "table")[-len(written) :], written, strict=True):
        console.print(f"{name:<8} {url}")
