"""The program's commands in this process: a process of its own takes seconds to start."""

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from ebmscale.cli import run_command
from ebmscale.cli.group import console
from ebmscale.terminal import LineHandler, Terminal

WIDTH = 200


class Done(NamedTuple):
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: str | Path) -> Done:
    """Runs `ebmscale ARGUMENTS` in this process, on lines of `WIDTH` characters."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "_width", WIDTH)  # otherwise that of the terminal at its import
        errors = Terminal(stderr=True, width=WIDTH)
        handler = LineHandler(errors)
        logging.getLogger().addHandler(handler)
        try:
            code = run_command(errors, [str(argument) for argument in arguments])
        finally:
            logging.getLogger().removeHandler(handler)
    return Done(code, out.getvalue(), err.getvalue())
