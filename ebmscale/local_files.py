"""Files of this machine: written as a whole or not at all, and read into memory that is there."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"  # ending of what an interrupted `replace_file` may leave behind


class Irregular(OSError):
    """A place holds a folder, a pipe or a device where a file is needed."""


def irregular(path: str | Path) -> str | None:
    """What is at a path instead of a file; None for a file, and where nothing can be found out."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # reading it reports the problem
        return None
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"


def check_regular(path: str | Path) -> None:
    """Refuses what would never end or cannot be read.

    Raises:
        Irregular: something else than a file is at the path.
    """
    kind = irregular(path)
    if kind is not None:
        raise Irregular(f"{Path(path).name} is {kind}, but a file is needed")


def replace_file(target: Path, data: bytes, make_folders: bool = True) -> None:
    """Write beside the target, flush to disk, rename over it, flush the folder.

    With `make_folders` false a missing folder is a FileNotFoundError, so that a deleted one is not made again.
    """
    if make_folders:
        _make_folder(target.parent)
    if target.is_dir():
        raise Irregular(f"{target.name} is a folder, but a file is needed")
    with _written_beside(target, data) as temporary:
        temporary.replace(target)
    _flush_folder(target.parent)


def create_file(target: Path, data: bytes) -> None:
    """Write beside the target and link it there; FileExistsError if the target exists."""
    _make_folder(target.parent)
    with _written_beside(target, data) as temporary:
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with target.open("xb") as file, _deleted_at_failure(target):
                file.write(data)
                file.flush()
    _flush_folder(target.parent)


def append_file(target: Path, data: bytes) -> None:
    """Append to a file, which is made if missing: all of the data or none."""
    _make_folder(target.parent)
    check_regular(target)
    with target.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):  # a full disk takes a part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            raise


def remove_file(target: Path) -> None:
    """Delete a file, a link, or a folder with everything below it."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        above = (folder, *folder.parents)
        wrong = next((one for one in above if os.path.lexists(one) and not one.is_dir()), folder)
        raise OSError(f"{wrong} is a file where a folder should be") from None


@contextmanager
def _deleted_at_failure(target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        target.unlink(missing_ok=True)
        raise


@contextmanager
def _written_beside(target: Path, data: bytes) -> Iterator[Path]:
    """A file with this content beside the target, flushed to disk; it is deleted afterwards unless it was renamed."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(place: Path) -> None:
    folder = os.open(place, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_into(path: str, start: int, memory: memoryview) -> int:
    """Fills memory with the bytes of a file from byte `start` on; how many there were, fewer where the file ends."""
    check_regular(path)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        num_bytes = 0
        while num := file.readinto(memory[num_bytes:]):
            num_bytes += num
        return num_bytes
