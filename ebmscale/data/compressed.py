"""Checks how large a compressed file becomes before it is expanded: a few bytes can expand to any size."""

import gzip
import io
import zipfile
import zlib
from typing import IO

from ebmscale.errors import DataError
from ebmscale.machine import free_memory

PLAIN_BYTES = 1 << 30  # files that expand to at most this may have any compression ratio
MOST_TIMES = 200  # the largest compression ratio of larger files
MOST_MEMBERS = 10_000
DEFLATED_TIMES = 1032  # the largest compression ratio of deflate


def check_memory(num_bytes: int, what: str) -> None:
    """Refuses data that are read as a whole and do not fit in memory; the DataError calls them `what`."""
    free = free_memory()
    if free is not None and num_bytes > free:
        raise DataError(
            f"{what} needs {num_bytes:,} bytes of memory, but only {free:,} bytes are free; divide it into "
            "parts, or save arrays with numpy.save, whose files are not read as a whole."
        )


def check_expansion(num_bytes: int, compressed: int, what: str) -> None:
    """Refuses data that would become too large; the DataError calls them `what`."""
    if num_bytes > PLAIN_BYTES and num_bytes > MOST_TIMES * compressed:
        raise DataError(
            f"{what} would grow from {compressed:,} to {num_bytes:,} bytes, as a decompression bomb does; if it is "
            "sound, store it without compression."
        )
    check_memory(num_bytes, what)


def check_zip(file: IO[bytes], what: str) -> None:
    """Refuses a zip archive, as .npz files are, whose members would become too large.

    Raises:
        DataError: they would; or it is not a zip archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception as error:  # what a damaged archive raises has no common class
        raise DataError(f"{what} is a damaged archive ({error}); get it again.") from error
    if len(members) > MOST_MEMBERS:
        raise DataError(f"{what} has {len(members):,} members; at most {MOST_MEMBERS:,} are read.")
    packed = sum(member.compress_size for member in members)
    check_expansion(sum(member.file_size for member in members), packed, what)


class Gunzip:
    """A gzip file in memory that is expanded step by step, as it is read.

    Args:
        data: the file.
        what: names it in errors.

    Attributes:
        most: the most bytes that it can expand to.
    """

    def __init__(self, data: bytes, what: str):
        self.most = DEFLATED_TIMES * len(data)
        self._file, self._what = gzip.GzipFile(fileobj=io.BytesIO(data)), what

    def read(self, length: int) -> bytes:
        """The next bytes, fewer at the end; DataError if the file is damaged."""
        try:
            return self._file.read(length)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self._what} is a damaged gzip file ({error}); get it again.") from error
