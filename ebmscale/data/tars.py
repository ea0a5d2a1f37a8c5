"""The members of a WebDataset tar that anyone wrote, in one pass from its first byte to its last.

A member is called KEY.FIELD. The key, with the folders before it, ends at the first dot of the file's name; what
follows the last dot is the ending. So a/b.input.png has the key a/b, the field input.png and the ending png.
"""

import hashlib
import posixpath
import sys
import tarfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ebmscale.data.names import printable
from ebmscale.errors import EbmscaleError
from ebmscale.storage import Storage

BLOCK_BYTES = 16 << 20  # of a tar, in memory at a time
HEADER_BYTES = 1 << 20  # of a header's further blocks, which hold a long name or fields of pax
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES[:2])


class Name(NamedTuple):
    """The name of a member."""

    key: str
    field: str

    @property
    def ending(self) -> str:
        """The ending of the file's name, in lower case."""
        return self.field.rpartition(".")[2]


class Member(NamedTuple):
    """A file of a tar, or a link to one.

    Attributes:
        name: its own.
        content: its bytes, at most one more than the limit of its ending; none of other endings and of links.
        offset: byte of the tar at which the content begins.
        link: the file that it is a link to; None if it is none.
        is_sparse: whether the tar holds it with holes, so that its content does not lie there as it is.
    """

    name: Name
    content: bytes
    offset: int
    link: Name | None
    is_sparse: bool


class SequentialFile:
    """A file read once from its beginning, block by block, with its checksum.

    Attributes:
        position: bytes read from the storage so far.
        last: how many of them there are up to the last one that is not 0.
        digest: their sha256.
    """

    def __init__(self, storage: Storage, file: str):
        self.position = self.last = 0
        self.digest = hashlib.sha256()
        self._storage = storage
        self._file = file
        self._size = storage.size(file)
        self._block = b""
        self._used = 0

    def read(self, length: int) -> bytes:
        """Up to `length` bytes; fewer at a block's or the file's end, none after it."""
        parts = []
        while length:
            if self._used == len(self._block):
                want = min(BLOCK_BYTES, self._size - self.position)
                self._block, self._used = (
                    (self._storage.read_range(self._file, self.position, want) if want else b""),
                    0,
                )
                if not self._block:
                    break
                self.digest.update(self._block)
                if used := len(self._block.rstrip(b"\0")):
                    self.last = self.position + used
                self.position += len(self._block)
            part = self._block[self._used : self._used + length]
            self._used += len(part)
            length -= len(part)
            parts.append(part)
        return b"".join(parts)

    def read_to_end(self) -> None:
        """Reads what the tar's reader left."""
        while self.read(BLOCK_BYTES):
            pass


class Header(tarfile.TarInfo):
    """The header of a member; further blocks of more than `HEADER_BYTES` are refused before they are read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """See `tarfile.TarInfo`."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and header.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims to be of {header.size:,} bytes")
        return header


def tar_members(source: SequentialFile, limits: Mapping[str, int]) -> Iterator[Member]:
    """The files of a tar whose names have a key and a field, and the links to them.

    Args:
        source: the tar; it is read to its end.
        limits: how many bytes are read of a file, by its ending; files of other endings come without content.

    Raises:
        tarfile.TarError: it is truncated, goes on after its end, or is no tar.
    """
    try:
        # tarfile takes what has a `read` for a file
        with tarfile.open(fileobj=source, mode="r|", bufsize=tarfile.BLOCKSIZE * 128, tarinfo=Header) as tar:  # type: ignore[call-overload]
            for found in tar:
                name = _name(found.name)
                if name is not None and (found.isreg() or found.islnk() or found.issym()):
                    yield _member(tar, found, name, limits)
            source.read_to_end()
            _check_end(source, tar.offset)
    except (tarfile.TarError, EbmscaleError):
        raise
    except Exception as error:  # what a damaged header raises has no common class
        raise tarfile.ReadError(str(error)) from error


def _check_end(source: SequentialFile, end: int) -> None:
    """Refuses a tar that goes on after the member that tarfile took for the last, or lacks the mark of its end."""
    if source.last > end:
        raise tarfile.ReadError(f"at byte {end:,} there is neither a file nor the end, though more bytes follow")
    if source.position < end + tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it lacks the mark of its end, so it was cut short")


def _name(path: str) -> Name | None:
    folder, _, name = posixpath.normpath(path).rpartition("/")
    stem, _, field = name.partition(".")
    if not stem or not field:
        return None
    return Name(printable(f"{folder}/{stem}" if folder else stem), sys.intern(printable(field.lower())))


def _member(tar: tarfile.TarFile, found: tarfile.TarInfo, name: Name, limits: Mapping[str, int]) -> Member:
    if not found.isreg():
        # a hard link names its file from the tar's beginning, a symbolic one from its own folder
        start = "" if found.islnk() else posixpath.dirname(found.name)
        target = _name(posixpath.join(start, found.linkname)) or Name(printable(found.linkname), "")
        return Member(name, b"", 0, target, False)
    if name.ending not in limits:
        return Member(name, b"", found.offset_data, None, False)
    length = min(found.size, limits[name.ending] + 1)
    file = tar.extractfile(found)
    content = file.read(length) if file is not None else b""
    if len(content) != length:
        raise tarfile.ReadError(f"{printable(found.name)} ends early")
    return Member(name, content, found.offset_data, None, found.issparse())
