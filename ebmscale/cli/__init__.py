"""The program: commands that parse, call and print, one module for each kind."""

import logging
import os
import sys
from collections.abc import Sequence

import click

from ebmscale.cli import (
    about,
    completion,
    encoding,
    features,
    measuring,
    models,
    ratios,
    running,
    scoring,
    searching,
    sets,
    starting,
)
from ebmscale.cli.group import cli
from ebmscale.errors import ConfigError, EbmscaleError, Interrupted
from ebmscale.machine import is_out_of_memory, out_of_memory
from ebmscale.stop import ENDING, asked_by, handle_signals
from ebmscale.terminal import LineHandler, Terminal, keep_output

__all__ = [
    "about",
    "cli",
    "completion",
    "encoding",
    "features",
    "main",
    "measuring",
    "models",
    "ratios",
    "run_command",
    "running",
    "scoring",
    "searching",
    "sets",
    "starting",
]


def main() -> None:
    """The program: runs the command that its arguments name, and exits with its code."""
    keep_output()
    handle_signals()
    os.environ["MPLBACKEND"] = "agg"  # pictures are drawn in files, whatever screen a shell or a notebook has set
    errors = Terminal(stderr=True)
    logging.basicConfig(level=logging.WARNING, handlers=[LineHandler(errors)])
    logging.getLogger("ebmscale").setLevel(logging.INFO if _is_first_rank() else logging.ERROR)
    logging.getLogger("ebmscale.rendezvous").setLevel(logging.INFO)  # every rank says that it waits for others
    try:
        code = run_command(errors)
    finally:
        ENDING.set()  # no thread keeps the process waiting for a storage
    if code:
        sys.exit(code)


def run_command(errors: Terminal, arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and turns its errors into one sentence and an exit code.

    Args:
        errors: shows the sentence.
        arguments: of the program; None takes those of this process.

    Returns:
        The exit code.
    """
    try:
        _check_folder()
        cli(arguments, prog_name="ebmscale", standalone_mode=False)
    except EbmscaleError as error:
        word = "stopped" if isinstance(error, Interrupted) else "error"
        errors.print(f"{word}: {error}")
        return error.exit_code
    except click.ClickException as error:
        for line in _about_usage(error):
            errors.print(line)
        return ConfigError.exit_code
    except (click.Abort, KeyboardInterrupt) as error:  # an Abort is a RuntimeError too
        errors.print(f"stopped: interrupted by {asked_by(error)}")
        return Interrupted.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        errors.print(f"error: {out_of_memory(error)}")
        return ConfigError.exit_code
    return 0


def _about_usage(error: click.ClickException) -> list[str]:
    """Click's message about arguments that it cannot use, line by line."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message().splitlines()
    message = f"Error: {error.format_message()}"
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return [message]
    return [*error.ctx.get_usage().splitlines(), f"Try '{error.ctx.command_path} --help' for help.", "", message]


def _check_folder() -> None:
    """Refuses to work in a folder that was deleted: nothing is found there, and torch ends a process that loads it."""
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("The folder that this command was started in is gone; change to another one.") from None


def _is_first_rank() -> bool:
    """Whether this process is the first of its ranks, by the environment, before the ranks meet."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "1") or os.environ.get("RANK", "0") in ("", "0")
