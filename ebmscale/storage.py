"""One value for every place where files lie: a local folder, `memory://`, or any address that fsspec opens.

A `Storage` is an address and nothing more: it holds no open connection, so it can be pickled, forked and compared.
The filesystem behind it is looked up at each use, and its listing cache is dropped before every question about what
exists. How a request is made, limited in time and repeated is in `filesystem`.

A name is only a name: nothing in it is a pattern, a chain or an escape, even where the storage has such characters.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ebmscale.address import Address
from ebmscale.config import AddressBlock
from ebmscale.errors import ConfigError, DamagedError, StorageError
from ebmscale.faults import TruncatedRead, is_missing, status
from ebmscale.filesystem import READS_AT_ONCE, Requester, read_part, read_whole, upload_options
from ebmscale.local_files import (
    TEMPORARY,
    append_file,
    check_regular,
    create_file,
    read_into,
    remove_file,
    replace_file,
)
from ebmscale.places import S3, linked, place_of, problem_of, remove

T = TypeVar("T")

RETRIES = 8  # about 26 s of pauses in all
LONGEST_WEB_S = 300.0  # for a whole file by HTTP, as a server may claim any size


class Range(NamedTuple):
    """`length` bytes of the file `path`, from byte `start` on."""

    path: str
    start: int
    length: int


@dataclass(frozen=True)
class Storage:
    """The files below one address; make it with `Storage.at`. Paths are relative to `url`, with `/` between parts.

    Every method raises `StorageError`, naming the address, when the storage refuses or cannot be reached.

    Attributes:
        url: absolute path of a local folder, or `scheme://place`, without a `/` at the end.
        options: what fsspec's filesystem takes (endpoint, credentials); never shown when the value is printed.
        retries: how often a request that failed for a temporary reason is repeated.
        stop: once it is set, every wait for this storage ends with `Interrupted`; it is not pickled.
    """

    url: Address
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    retries: int = field(default=RETRIES, repr=False)
    stop: threading.Event | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"stop": None}

    @classmethod
    def at(cls, url: str | os.PathLike[str], *, retries: int = RETRIES, **options: Any) -> "Storage":
        """The storage at a folder's path (made absolute), `file://`, `memory://` or another address of fsspec.

        `s3://` finds its endpoint and credentials where AWS's own tools do (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
        AWS_PROFILE, ~/.aws, ...) unless `options` name them (`endpoint_url`, `anon`, `key`, `secret`).
        `http(s)://` can only be read. The query of such an address (`?sig=...`) is sent with each request.

        Raises:
            ConfigError: the text is not an address.
        """
        try:
            return cls(Address.parse(url), options, retries)
        except ValueError as error:
            raise ConfigError(_capital(f"{error}.")) from None

    @classmethod
    def of_file(cls, url: str | os.PathLike[str]) -> tuple["Storage", str]:
        """The storage of the folder that a file lies in, and the file's name.

        Raises:
            ConfigError: the text is not an address of a file.
        """
        try:
            folder, name = Address.parse(url).parted()
            return cls(folder), name
        except ValueError as error:
            raise ConfigError(_capital(f"{error}.")) from None

    def child(self, path: str) -> "Storage":
        """The storage one or more folders below."""
        return replace(self, url=self.url_of(path))

    def hearing(self, stop: threading.Event) -> "Storage":
        """The same storage; its waits end once `stop` is set."""
        return replace(self, stop=stop)

    def url_of(self, path: str = "") -> Address:
        """The full address of `path`, for messages and for other programs."""
        problem = problem_of(self.url, path)
        if problem is not None:
            raise StorageError(f"{self.url} cannot hold a file {path!r}: {problem}; give it another name.")
        return self.url.below(path)

    def local_path(self, path: str = "") -> Path | None:
        """The real path of `path` where this storage is a folder of this machine, else None."""
        return Path(self.url_of(path).real) if self.url.is_local else None

    def read_bytes(self, path: str) -> bytes:
        """The whole content of a file."""
        longest_s = LONGEST_WEB_S if self.url.is_web else None
        return self._request("read", path, lambda fs, place: read_whole(fs, self._file(place), longest_s))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on; fewer only where the file ends before."""
        what = f"bytes {start} to {start + length - 1} of "

        def read(fs: Any, place: str) -> bytes:
            return read_part(fs, self._file(place), start, length)

        return self._request("read", path, read, what, length)

    def read_into(self, path: str, start: int, memory: memoryview) -> int:
        """`read_range` of a local file into memory that is there already; the number of bytes.

        The first try is made at once, because preparing its repetitions would take longer than many reads.
        """
        with suppress(OSError):
            return read_into(self.url_of(path).real, start, memory)
        what = f"bytes {start} to {start + len(memory) - 1} of "
        return self._request("read", path, lambda fs, place: read_into(place, start, memory), what, len(memory))

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """`read_range` of each; requests to a remote storage are in flight together."""

        def read(fs: Any, place: str) -> list[bytes | Exception]:
            paths = [self._file(place_of(fs, self.url_of(one.path))) for one in ranges]
            ends = [one.start + one.length for one in ranges]
            together = {"batch_size": READS_AT_ONCE} if fs.async_impl else {}
            return fs.cat_ranges(paths, [one.start for one in ranges], ends, on_error="return", **together)

        answers = self._request("read", "", read, num_bytes=sum(one.length for one in ranges))
        return [
            answer if isinstance(answer, bytes) and len(answer) == one.length else self.read_range(*one)
            for answer, one in zip(answers, ranges, strict=True)
        ]

    def read_text(self, path: str) -> str:
        """The whole content of a UTF-8 file."""
        try:
            return self.read_bytes(path).decode()
        except UnicodeDecodeError:
            raise DamagedError(f"{self.url_of(path)} is damaged: it is not UTF-8 text.") from None

    def size(self, path: str) -> int:
        """Size of a file in bytes."""

        def ask(fs: Any, place: str) -> int:
            fs.invalidate_cache()
            return fs.info(place)["size"]

        return self._request("read", path, ask)

    def exists(self, path: str = "") -> bool:
        """Whether a file or a folder is there; an unreachable storage is an error, never False."""

        def ask(fs: Any, place: str) -> bool:
            fs.invalidate_cache()
            try:
                fs.info(place)
            except (FileNotFoundError, NotADirectoryError) as error:
                if not is_missing(error):
                    raise
                return False
            return True

        return self._request("read", path, ask)

    def list(self, path: str = "") -> list[str]:
        """The sorted names directly below `path`, files and folders; none if nothing has been written yet."""

        def ask(fs: Any, place: str) -> list[str]:
            fs.invalidate_cache()
            try:
                places = fs.ls(place, detail=False)
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise
                return []
            if self.url.is_web:
                return linked(place, places)
            return [found for found in places if found.strip("/") != place.strip("/")]

        names = {found.rstrip("/").rpartition("/")[2] for found in self._request("list", path, ask)}
        return sorted(name for name in names if not (name.startswith(".") and name.endswith(TEMPORARY)))

    def publish(self, path: str, data: bytes, make_folders: bool = True) -> None:
        """Write a whole file: a reader sees the old content or the new one and nothing between, also after a crash.

        An upload to S3 carries the data's MD5, and the server refuses data that do not match it. On any remote storage
        the size is checked afterwards. With `make_folders` false a local folder that was deleted is not made again.
        """
        target = self.local_path(path)

        def write(fs: Any, place: str) -> None:
            if target is not None:
                replace_file(target, data, make_folders)
                return
            if self.url.is_web:
                raise NotImplementedError
            fs.pipe_file(place, data, **upload_options(self.url, data))
            fs.invalidate_cache()
            size = fs.info(place)["size"]
            if size != len(data):
                raise TruncatedRead(f"{size} bytes arrived of {len(data)}")

        self._request("write", path, write, num_bytes=len(data))

    def create(self, path: str, data: bytes) -> None:
        """Write a whole file where there is none; an existing file is not changed.

        Of several callers one wins where the storage has conditional writes (local disks, S3's If-None-Match, ...).
        Some servers ignore the condition, and an answer may be lost. So a caller reads the file to see who won.
        """
        target = self.local_path(path)

        def write(fs: Any, place: str) -> None:
            try:
                if target is not None:
                    create_file(target, data)
                else:
                    fs.pipe_file(place, data, mode="create", **upload_options(self.url, data))
            except Exception as error:
                if not isinstance(error, FileExistsError) and status(error) not in (409, 412):
                    raise

        self._request("write", path, write)

    def append(self, path: str, data: str | bytes) -> None:
        """Append to a file, which is made if missing. A remote file is written anew, so it may have one writer only."""
        data = data.encode() if isinstance(data, str) else data
        target = self.local_path(path)
        if target is None:
            old = self.read_bytes(path) if self.exists(path) else b""
            self.publish(path, old + data)
            return
        self._request("write", path, lambda fs, place: append_file(target, data))

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with everything below it; nothing happens where there is none."""

        def delete(fs: Any, place: str) -> None:
            try:
                if target is None:
                    remove(fs, place)
                else:
                    remove_file(target)
            except FileNotFoundError as error:  # also after a first attempt that succeeded and whose answer was lost
                if not is_missing(error):
                    raise

        target = self.local_path(path)
        if self.exists(path):
            self._request("delete", path, delete)

    def sweep(self, path: str = "") -> None:
        """Delete the temporary files of killed writers directly below a local folder; no writer may be active."""
        folder = self.local_path(path)
        for leftover in folder.glob(f".*{TEMPORARY}") if folder is not None else ():
            if leftover.is_file():
                self.delete(f"{path}/{leftover.name}")

    def _file(self, place: str) -> str:
        """The place itself, where it is not a folder, a pipe or a device of this machine."""
        if self.url.is_local:
            check_regular(place)
        return place

    def _request(self, action: str, path: str, work: Callable[[Any, str], T], what: str = "", num_bytes: int = 0) -> T:
        """The result of `work(filesystem, place)`; see `Requester.request`."""
        requester = Requester(self.options, self.retries, self.stop)
        return requester.request(action, self.url_of(path), work, what, num_bytes)


def open_storage(block: AddressBlock) -> Storage:
    """The storage that a block of the configuration names; its S3 settings are for `s3://` alone."""
    options: dict[str, Any] = {}
    if Address(block.url).scheme in S3:
        options |= {"endpoint_url": Address(block.endpoint_url).real} if block.endpoint_url else {}
        options |= {"anon": True} if block.anonymous else {}
    return Storage.at(block.url, retries=block.retries, **options)


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:] if sentence.startswith("the ") else sentence
