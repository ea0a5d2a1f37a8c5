"""What may lie where a file is needed."""

import os
from pathlib import Path

KINDS = ("folder", "pipe", "device")


def make_irregular(path: Path, kind: str) -> None:
    """Makes one of `KINDS` at a path."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
