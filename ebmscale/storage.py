"""One value for every place where files lie: a local folder, `memory://`, or any address that fsspec opens.

A `Storage` is an address and nothing more: it holds no open connection, so it can be pickled, forked and compared.
The filesystem behind it is looked up at each use, in the process and thread that use it (fsspec keeps one per
process, thread and set of options), and its listing cache is dropped before every question about what exists.

What fails for a reason that may pass (time-outs, lost connections, busy servers, cut bodies) is asked again, after
pauses that double and vary at random; what fails for good becomes one `StorageError`.
"""

import base64
import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from ebmscale.config import AddressBlock
from ebmscale.errors import DamagedError, NotFoundError, StorageError
from ebmscale.faults import TruncatedRead, advice, describe, is_storage_failure, is_transient, status

T = TypeVar("T")

RETRIES = 8  # about 26 s of pauses in all
FIRST_PAUSE_S, LONGEST_PAUSE_S, JITTER_S = 0.1, 20.0, 0.2
READS_AT_ONCE = 16  # requests of `read_ranges` in flight, where the storage is remote
LARGEST_PUT = 5 * 2**30  # bytes that S3 takes in one request
_TEMPORARY = ".tmp"  # ending of what an interrupted local `publish` may leave behind; `list` does not show it


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
        retries: how often a request that failed for a passing reason is sent again.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    retries: int = field(default=RETRIES, repr=False)

    @classmethod
    def at(cls, url: str | os.PathLike[str], *, retries: int = RETRIES, **options: Any) -> "Storage":
        """The storage at a folder's path (made absolute), `file://`, `memory://` or another address of fsspec.

        `s3://` finds its endpoint and credentials where AWS's own tools do (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
        AWS_PROFILE, ~/.aws, ...) unless `options` name them (`endpoint_url`, `anon`, `key`, `secret`).
        `http(s)://` can only be read.
        """
        text = os.fspath(url).removeprefix("file://")
        if "://" not in text:
            return cls(os.path.abspath(os.path.expanduser(text)), options, retries)
        scheme, _, place = text.partition("://")
        return cls(f"{scheme}://{place.rstrip('/')}", options, retries)

    def child(self, path: str) -> "Storage":
        """The storage one or more folders below."""
        return replace(self, url=self.url_of(path))

    def url_of(self, path: str = "") -> str:
        """The full address of `path`, for messages and for other programs."""
        if not path:
            return self.url
        return f"{self.url}{'' if self.url.endswith('/') else '/'}{path.strip('/')}"

    def local_path(self, path: str = "") -> Path | None:
        """The real path of `path` where this storage is a folder of this machine, else None."""
        return None if "://" in self.url else Path(self.url_of(path))

    def read_bytes(self, path: str) -> bytes:
        """The whole content of a file."""
        return self._try("read", path, lambda fs, place: fs.cat_file(place))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on; fewer where the file ends before, and never for another reason."""

        def read(fs: Any, place: str) -> bytes:
            try:
                data = fs.cat_file(place, start=start, end=start + length)
            except Exception as error:
                if status(error) == 416:  # the file ends before `start`
                    return b""
                raise
            return data if len(data) == length else _check_short(data, start, length, fs.info(place)["size"])

        return self._try("read", path, read, what=f"bytes {start} to {start + length - 1} of ")

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """`read_range` of each; requests to a remote storage are in flight together."""

        def read(fs: Any, place: str) -> list[bytes | Exception]:
            paths = [fs._strip_protocol(self.url_of(one.path)) for one in ranges]
            ends = [one.start + one.length for one in ranges]
            together = {"batch_size": READS_AT_ONCE} if fs.async_impl else {}
            return fs.cat_ranges(paths, [one.start for one in ranges], ends, on_error="return", **together)

        answers = self._try("read", "", read)
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
        """Whether a file or a folder is there; a storage that cannot be reached is an error, not a no."""

        def ask(fs: Any, place: str) -> bool:
            fs.invalidate_cache()
            try:
                fs.info(place)
            except (FileNotFoundError, NotADirectoryError) as error:
                if is_transient(error):  # fsspec reports a failing HTTP server as a missing file
                    raise
                return False
            return True

        return self._try("read", path, ask)

    def list(self, path: str = "") -> list[str]:
        """The sorted names directly below `path`, files and folders; none where nothing has been written yet."""

        def ask(fs: Any, place: str) -> list[str]:
            fs.invalidate_cache()
            try:
                places = fs.ls(place, detail=False)
            except FileNotFoundError as error:
                if is_transient(error):
                    raise
                return []
            return [found for found in places if found.strip("/") != place.strip("/")]

        names = {found.rstrip("/").rpartition("/")[2] for found in self._try("list", path, ask)}
        return sorted(name for name in names if not (name.startswith(".") and name.endswith(_TEMPORARY)))

    def publish(self, path: str, data: bytes) -> None:
        """Write a whole file so that a reader, or a crash, sees the old content or the new one and nothing between.

        An S3 server is sent the MD5 with the data, and refuses them where they do not arrive as they were sent; any
        remote storage is asked for the size afterwards.
        """
        target = self.local_path(path)

        def write(fs: Any, place: str) -> None:
            if target is not None:
                _replace_file(target, data)
                return
            if self.url.startswith(("http://", "https://")):
                raise NotImplementedError
            fs.pipe_file(place, data, **self._upload_options(data))
            fs.invalidate_cache()
            size = fs.info(place)["size"]
            if size != len(data):
                raise TruncatedRead(f"{size} bytes arrived of {len(data)}")

        self._try("write", path, write)

    def create(self, path: str, data: bytes) -> None:
        """Write a whole file where there is none; one that is there stays as it is.

        Of several callers one wins where the storage can compare (local disks, S3's If-None-Match, ...). Some servers
        ignore the condition, and an answer may be lost, so a caller reads the file to see who won.
        """
        target = self.local_path(path)

        def write(fs: Any, place: str) -> None:
            try:
                if target is not None:
                    _create_file(target, data)
                else:
                    fs.pipe_file(place, data, mode="create", **self._upload_options(data))
            except Exception as error:
                if not isinstance(error, FileExistsError) and status(error) not in (409, 412):
                    raise

        self._try("write", path, write)

    def append(self, path: str, data: str | bytes) -> None:
        """Add to the end of a file, made if missing. Off local folders this rewrites the file: one writer only."""
        data = data.encode() if isinstance(data, str) else data
        target = self.local_path(path)
        if target is None:
            old = self.read_bytes(path) if self.exists(path) else b""
            self.publish(path, old + data)
            return

        def write(fs: Any, place: str) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    if file.write(data) != len(data):  # a full disk takes a part of it
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(end)
                    raise

        self._try("write", path, write)

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with everything below it; nothing happens where there is none."""

        def remove(fs: Any, place: str) -> None:
            try:
                fs.rm(place, recursive=True)
            except FileNotFoundError as error:  # also when a first try went through and its answer was lost
                if is_transient(error):
                    raise

        if self.exists(path):
            self._try("delete", path, remove)

    def sweep(self, path: str = "") -> None:
        """Delete what writers that were killed left behind directly below a local folder; no writer may be active."""
        folder = self.local_path(path)
        for leftover in folder.glob(f".*{_TEMPORARY}") if folder is not None else ():
            leftover.unlink(missing_ok=True)

    def probe(self) -> None:
        """Write, read back and delete a small object; a `StorageError` says what to do where that fails."""
        name = f".ebmscale-probe-{uuid.uuid4().hex}"
        try:
            self.publish(name, name.encode())
            same = self.read_bytes(name) == name.encode()
            self.delete(name)
        except StorageError as error:
            raise StorageError(
                f"{self.url} cannot be written to ({describe(error.__cause__ or error)}); "
                "choose another storage.url or grant this account read, write and delete there."
            ) from error
        if not same:
            raise StorageError(f"{self.url} gave back other bytes than were written; choose another storage.url.")

    def _try(self, action: str, path: str, work: Callable[[Any, str], T], what: str = "") -> T:
        """The result of `work(filesystem, place)`; failures that may pass are tried again, others are one sentence."""
        url = self.url_of(path)
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            stop=stop_after_attempt(self.retries + 1),
            wait=wait_exponential_jitter(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S, jitter=JITTER_S),
            reraise=True,
        )
        try:
            return retrying(lambda: work(*self._open(url)))
        except Exception as error:
            if not is_storage_failure(error):
                raise
            number = retrying.statistics.get("attempt_number", 1)
            tries = f", {number} tries" if number > 1 else ""
            missing = isinstance(error, FileNotFoundError) and action == "read"
            kind = NotFoundError if missing and not is_transient(error) else StorageError
            raise kind(_sentence(f"{action} {what}{url}", error, tries)) from error

    def _upload_options(self, data: bytes) -> dict[str, Any]:
        """What an upload by one request is sent with, so that the server checks it."""
        if not self.url.startswith(("s3://", "s3a://")) or len(data) >= LARGEST_PUT:
            return {}
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return {"ContentMD5": base64.b64encode(digest).decode(), "chunksize": LARGEST_PUT}

    def _open(self, url: str) -> tuple[Any, str]:
        """The filesystem of fsspec and the place of `url` in it; it tries once, since `_try` tries again."""
        if not url.startswith(("s3://", "s3a://")):
            return fsspec.core.url_to_fs(url, **self.options)
        config = {"retries": {"total_max_attempts": 1}, "max_pool_connections": READS_AT_ONCE}
        options = {"use_listings_cache": False, "config_kwargs": config} | dict(self.options)
        fs, place = fsspec.core.url_to_fs(url, **options)
        fs.retries = 1
        return fs, place


def open_storage(block: AddressBlock) -> Storage:
    """The storage that a block of the configuration names; its S3 settings play no role for other addresses."""
    options: dict[str, Any] = {}
    if block.url.startswith(("s3://", "s3a://")):
        options |= {"endpoint_url": block.endpoint_url} if block.endpoint_url else {}
        options |= {"anon": True} if block.anonymous else {}
    return Storage.at(block.url, retries=block.retries, **options)


def _sentence(what: str, error: Exception, tries: str) -> str:
    if isinstance(error, FileNotFoundError) and not is_transient(error):
        return f"Cannot {what}: it does not exist; check the address."
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return f"Cannot {what}: fsspec knows no such kind of address; check it."
    return f"Cannot {what} ({describe(error)}{tries}); {advice(error)}."


def _check_short(data: bytes, start: int, length: int, size: int) -> bytes:
    """`data` where it is all that the file has there, else an OSError."""
    expected = max(0, min(length, size - start))
    if len(data) < expected:
        raise TruncatedRead(f"{len(data)} bytes came where {expected} were asked for")
    if len(data) > expected:
        raise OSError(f"the server sends {len(data)} bytes where {expected} were asked for: it serves no byte ranges")
    return data


def _replace_file(target: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, rename over it, flush the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def _create_file(target: Path, data: bytes) -> None:
    """Write beside the target and link it there; FileExistsError where something is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with target.open("xb") as file:
                file.write(data)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(target.parent)


def _flush_folder(place: Path) -> None:
    folder = os.open(place, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
