"""Files of this machine: written as a whole or not at all."""

import os
import shutil
import uuid
from pathlib import Path

TEMPORARY = ".tmp"  # ending of what an interrupted `replace_file` may leave behind


def replace_file(target: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, rename over it, flush the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def append_file(target: Path, data: bytes) -> None:
    """Add to the end of a file, made if missing: all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            file.write(data)
        except OSError:  # a full disk takes a part of it
            file.truncate(end)
            raise


def remove_file(target: Path) -> None:
    """Delete a file, a link, or a folder with everything below it."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
