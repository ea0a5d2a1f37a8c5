"""The program's commands in this process: a process of its own takes seconds to start."""

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from ebmscale.cli import run_command
from ebmscale.terminal import LineHandler, Terminal


class Done(NamedTuple):
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: str | Path) -> Done:
    """Runs `ebmscale ARGUMENTS` in this process, with what it prints on lines of 200 characters."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        errors = Terminal(stderr=True)
        handler = LineHandler(errors)
        logging.getLogger().addHandler(handler)
        try:
            code = run_command(errors, [str(argument) for argument in arguments])
        finally:
            logging.getLogger().removeHandler(handler)
    return Done(code, out.getvalue(), err.getvalue())
