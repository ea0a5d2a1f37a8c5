"""The program: commands that parse, call and print, one module for each kind."""

import logging
import os
import signal
import sys

import click
from rich.console import Console
from rich.logging import RichHandler

from ebmscale.cli import about, measuring, models, ratios, running, searching, sets
from ebmscale.cli.group import cli
from ebmscale.errors import ConfigError, EbmscaleError, Interrupted

__all__ = ["about", "cli", "main", "measuring", "models", "ratios", "running", "searching", "sets"]


def main() -> None:
    """The program: runs a command, and turns errors into one sentence and an exit code."""
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("ebmscale").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; training listens for itself
    try:
        cli(standalone_mode=False)
    except EbmscaleError as error:
        word = "stopped" if isinstance(error, Interrupted) else "error"
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"{word}: {error}")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(ConfigError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(Interrupted.exit_code)
