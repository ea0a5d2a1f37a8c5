"""One value for every place where files lie: a local folder, `memory://`, or any address that fsspec opens.

A `Storage` is an address and nothing more: it holds no open connection, so it can be pickled, forked and compared.
The filesystem behind it is looked up at each use, in the process and thread that use it (fsspec keeps one per
process, thread and set of options), and its listing cache is dropped before every question about what exists.

A name is only a name: nothing in it is a pattern, a chain or an escape, even where the storage has such characters.

A request that fails for a temporary reason (time-outs, lost connections, busy servers, truncated bodies) is repeated
after pauses that double and vary at random. Any other failure becomes one `StorageError`. Every request has a time
limit, and a stop ends every wait (see `waits`).
"""

import base64
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential_jitter

from ebmscale.address import Address
from ebmscale.config import AddressBlock
from ebmscale.errors import ConfigError, DamagedError, NotFoundError, StorageError
from ebmscale.faults import (
    TruncatedRead,
    Unopenable,
    describe,
    is_missing,
    is_storage_failure,
    is_transient,
    sentence,
    status,
)
from ebmscale.local_files import TEMPORARY, append_file, create_file, remove_file, replace_file
from ebmscale.places import S3, linked, place_of, problem_of, remove
from ebmscale.waits import InterruptibleFilesystem, TooSlow, Wait

T = TypeVar("T")

RETRIES = 8  # about 26 s of pauses in all
FIRST_PAUSE_S, LONGEST_PAUSE_S, JITTER_S = 0.1, 20.0, 0.2
READS_AT_ONCE = 16  # requests of `read_ranges` in flight, where the storage is remote
LARGEST_PUT = 5 * 2**30  # bytes that S3 takes in one request
REQUEST_S, TOTAL_S = 40.0, 120.0  # for one request, and for it with all its repetitions;
SLOWEST_BYTES_S = 200_000  # both grow by the time that the bytes take at this rate
LONGEST_WEB_S = 300.0  # for a whole file by HTTP, as a server may claim any size
INTERRUPTIBLE = (*S3, "http", "https", "memory")  # a stop can interrupt these clients


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
            ConfigError: the text is no address.
        """
        try:
            return cls(Address.parse(url), options, retries)
        except ValueError as error:
            raise ConfigError(_capital(f"{error}.")) from None

    @classmethod
    def of_file(cls, url: str | os.PathLike[str]) -> tuple["Storage", str]:
        """The storage of the folder that a file lies in, and the file's name.

        Raises:
            ConfigError: the text is no address of a file.
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

        def read(fs: Any, place: str) -> bytes:
            try:
                return fs.cat_file(place)
            except TooSlow:
                size = fs.info(place)["size"] or 0
                limit_s = REQUEST_S + size / SLOWEST_BYTES_S
                if limit_s < 2 * REQUEST_S:
                    raise
                return fs.within(min(limit_s, LONGEST_WEB_S) if self.url.is_web else limit_s).cat_file(place)

        return self._try("read", path, read)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on; fewer only where the file ends before."""

        def read(fs: Any, place: str) -> bytes:
            try:
                data = fs.cat_file(place, start=start, end=start + length)
            except Exception as error:
                if status(error) == 416:  # the file ends before `start`
                    return b""
                raise
            return data if len(data) == length else _check_short(data, start, length, fs.info(place)["size"])

        return self._try("read", path, read, what=f"bytes {start} to {start + length - 1} of ", num_bytes=length)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """`read_range` of each; requests to a remote storage are in flight together."""

        def read(fs: Any, place: str) -> list[bytes | Exception]:
            paths = [place_of(fs, self.url_of(one.path)) for one in ranges]
            ends = [one.start + one.length for one in ranges]
            together = {"batch_size": READS_AT_ONCE} if fs.async_impl else {}
            return fs.cat_ranges(paths, [one.start for one in ranges], ends, on_error="return", **together)

        answers = self._try("read", "", read, num_bytes=sum(one.length for one in ranges))
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

        return self._try("read", path, ask)

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

        return self._try("read", path, ask)

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

        names = {found.rstrip("/").rpartition("/")[2] for found in self._try("list", path, ask)}
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
            fs.pipe_file(place, data, **self._upload_options(data))
            fs.invalidate_cache()
            size = fs.info(place)["size"]
            if size != len(data):
                raise TruncatedRead(f"{size} bytes arrived of {len(data)}")

        self._try("write", path, write, num_bytes=len(data))

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
                    fs.pipe_file(place, data, mode="create", **self._upload_options(data))
            except Exception as error:
                if not isinstance(error, FileExistsError) and status(error) not in (409, 412):
                    raise

        self._try("write", path, write)

    def append(self, path: str, data: str | bytes) -> None:
        """Append to a file, which is made if missing. A remote file is written anew, so it may have one writer only."""
        data = data.encode() if isinstance(data, str) else data
        target = self.local_path(path)
        if target is None:
            old = self.read_bytes(path) if self.exists(path) else b""
            self.publish(path, old + data)
            return
        self._try("write", path, lambda fs, place: append_file(target, data))

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
            self._try("delete", path, delete)

    def sweep(self, path: str = "") -> None:
        """Delete the temporary files of killed writers directly below a local folder; no writer may be active."""
        folder = self.local_path(path)
        for leftover in folder.glob(f".*{TEMPORARY}") if folder is not None else ():
            leftover.unlink(missing_ok=True)

    def probe(self, key: str = "storage.url") -> None:
        """Write, read back and delete a small object; a `StorageError` says what to do where that fails.

        Args:
            key: the key or option that names this storage.
        """
        name = f".ebmscale-probe-{uuid.uuid4().hex}"
        try:
            self.publish(name, name.encode())
            same = self.read_bytes(name) == name.encode()
            self.delete(name)
        except StorageError as error:
            raise StorageError(
                f"{self.url} cannot be written to ({describe(error.__cause__ or error)}); "
                f"choose another {key} or grant this account read, write and delete there."
            ) from error
        if not same:
            raise StorageError(f"{self.url} returned other bytes than were written; choose another {key}.")

    def _try(self, action: str, path: str, work: Callable[[Any, str], T], what: str = "", num_bytes: int = 0) -> T:
        """The result of `work(filesystem, place)`; temporary failures are tried again, others become one sentence."""
        url, longer_s = self.url_of(path), num_bytes / SLOWEST_BYTES_S
        wait = Wait(REQUEST_S + longer_s, self.stop)
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            stop=stop_after_attempt(self.retries + 1) | stop_after_delay(TOTAL_S + longer_s),
            wait=wait_exponential_jitter(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S, jitter=JITTER_S),
            sleep=wait.sleep,
            reraise=True,
        )

        def attempt() -> T:
            fs = self._open(url)
            return work(InterruptibleFilesystem(fs, wait), place_of(fs, url))

        in_thread = not url.is_local and url.scheme not in INTERRUPTIBLE
        try:
            return retrying(lambda: wait.in_thread(attempt) if in_thread else attempt())
        except Exception as error:
            if not is_storage_failure(error):
                raise
            number = retrying.statistics.get("attempt_number", 1)
            tries = f", {number} tries" if number > 1 else ""
            kind = NotFoundError if action == "read" and is_missing(error) else StorageError
            raise kind(sentence(f"{action} {what}{url}", error, tries)) from error

    def _upload_options(self, data: bytes) -> dict[str, Any]:
        """The options of an upload by one request that let the server check it."""
        if self.url.scheme not in S3 or len(data) >= LARGEST_PUT:
            return {}
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return {"ContentMD5": base64.b64encode(digest).decode(), "chunksize": LARGEST_PUT}

    def _open(self, url: Address) -> Any:
        """The filesystem of fsspec; it tries once, since `_try` tries again."""
        kind = fsspec.get_filesystem_class(url.scheme or "file")
        options = dict(self.options)
        try:
            if url.scheme in S3:
                config = {"retries": {"total_max_attempts": 1}, "max_pool_connections": READS_AT_ONCE}
                options = {"use_listings_cache": False, "config_kwargs": config} | options
            elif url.is_web:
                options = {"encoded": True, "client_kwargs": _web_options()} | options
            elif not url.is_local:
                options = kind._get_kwargs_from_urls(url.real) | options
            fs = kind(**options)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # options that are missing or wrong
            raise Unopenable(f"{kind.__name__} of fsspec cannot be opened: {describe(error)}") from error
        if url.scheme in S3:
            fs.retries = 1
        return fs


def open_storage(block: AddressBlock) -> Storage:
    """The storage that a block of the configuration names; its S3 settings are for `s3://` alone."""
    options: dict[str, Any] = {}
    if Address(block.url).scheme in S3:
        options |= {"endpoint_url": Address(block.endpoint_url).real} if block.endpoint_url else {}
        options |= {"anon": True} if block.anonymous else {}
    return Storage.at(block.url, retries=block.retries, **options)


def _web_options() -> dict[str, Any]:
    """Turns off the client's own time limits, since `Wait` limits each request."""
    import aiohttp  # noqa: PLC0415 (slow to import)

    return {"timeout": aiohttp.ClientTimeout(total=None)}


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:] if sentence.startswith("the ") else sentence


def _check_short(data: bytes, start: int, length: int, size: int) -> bytes:
    """`data` if the file has no more there, else an OSError."""
    expected = max(0, min(length, size - start))
    if len(data) < expected:
        raise TruncatedRead(f"{len(data)} bytes came where {expected} were asked for")
    if len(data) > expected:
        raise OSError(f"the server sends {len(data)} bytes where {expected} were asked for: it serves no byte ranges")
    return data
