"""The program: commands that parse, call and print, one module for each kind."""

import io
import logging
import os
import signal
import sys
from types import FrameType

import click
from rich.console import Console
from rich.logging import RichHandler

from ebmscale.address import clean
from ebmscale.cli import about, measuring, models, ratios, running, searching, sets
from ebmscale.cli.group import cli
from ebmscale.errors import ConfigError, EbmscaleError, Interrupted
from ebmscale.waits import LEAVING

__all__ = ["about", "cli", "main", "measuring", "models", "ratios", "running", "searching", "sets"]


def main() -> None:
    """The program: runs a command, and turns errors into one sentence and an exit code."""
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    handler.setFormatter(_Clean("%(message)s"))
    logging.getLogger("ebmscale").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    heard = [signal.SIGTERM] if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else [signal.SIGTERM, signal.SIGINT]
    for number in heard:  # training listens for itself
        signal.signal(number, _leave)
    try:
        cli(standalone_mode=False)
    except EbmscaleError as error:
        word = "stopped" if isinstance(error, Interrupted) else "error"
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"{word}: {error}")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(clean(shown.getvalue()), nl=False, err=True)
        sys.exit(ConfigError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(Interrupted.exit_code)
    finally:
        LEAVING.set()  # no thread keeps the process waiting for a storage


class _Clean(logging.Formatter):
    """Also what other libraries say shows no secret of an address."""

    def format(self, record: logging.LogRecord) -> str:
        """The message."""
        return clean(super().format(record))


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Ends the program: the main thread by an exception, the others where they wait for a storage."""
    LEAVING.set()
    raise KeyboardInterrupt
