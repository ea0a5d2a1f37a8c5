"""One value for every place where files lie: a local folder, `memory://`, or any address that fsspec opens.

A `Storage` is an address and nothing more: it holds no open connection, so it can be pickled, forked and compared.
The filesystem behind it is looked up at each use, in the process and thread that use it (fsspec keeps one per
process, thread and set of options), and its listing cache is dropped before every question about what exists.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec

from ebmscale.errors import StorageError

_TEMPORARY = ".tmp"  # ending of what an interrupted local `publish` may leave behind; `list` does not show it


@dataclass(frozen=True)
class Storage:
    """The files below one address; make it with `Storage.at`. Paths are relative to `url`, with `/` between parts.

    Every method raises `StorageError`, naming the address, when the storage refuses or cannot be reached.

    Attributes:
        url: absolute path of a local folder, or `scheme://place`, without a `/` at the end.
        options: what fsspec's filesystem takes (endpoint, credentials); never shown when the value is printed.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @classmethod
    def at(cls, url: str | os.PathLike[str], **options: Any) -> "Storage":
        """The storage at a folder's path (made absolute), `file://`, `memory://` or another address of fsspec."""
        text = os.fspath(url).removeprefix("file://")
        if "://" not in text:
            return cls(os.path.abspath(os.path.expanduser(text)), options)
        scheme, _, place = text.partition("://")
        return cls(f"{scheme}://{place.rstrip('/')}", options)

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
        with self._filesystem("read", path) as (fs, place):
            return fs.cat_file(place)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on; fewer where the file ends before."""
        with self._filesystem("read", path) as (fs, place):
            return fs.cat_file(place, start=start, end=start + length)

    def read_text(self, path: str) -> str:
        """The whole content of a UTF-8 file."""
        return self.read_bytes(path).decode()

    def size(self, path: str) -> int:
        """Size of a file in bytes."""
        with self._filesystem("read", path) as (fs, place):
            fs.invalidate_cache()
            return fs.info(place)["size"]

    def exists(self, path: str = "") -> bool:
        """Whether a file or a folder is there; a storage that cannot be reached is an error, not a no."""
        with self._filesystem("read", path) as (fs, place):
            fs.invalidate_cache()
            try:
                fs.info(place)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def list(self, path: str = "") -> list[str]:
        """The sorted names directly below `path`, files and folders; none where nothing has been written yet."""
        with self._filesystem("list", path) as (fs, place):
            fs.invalidate_cache()
            try:
                places = fs.ls(place, detail=False)
            except FileNotFoundError:
                return []
        names = {found.rstrip("/").rpartition("/")[2] for found in places if found.strip("/") != place.strip("/")}
        return sorted(name for name in names if not (name.startswith(".") and name.endswith(_TEMPORARY)))

    def publish(self, path: str, data: bytes) -> None:
        """Write a whole file so that a reader, or a crash, sees the old content or the new one and nothing between."""
        target = self.local_path(path)
        with self._filesystem("write", path) as (fs, place):
            if target is None:
                fs.pipe_file(place, data)
            else:
                _replace_file(target, data)

    def append(self, path: str, text: str) -> None:
        """Add text to the end of a file, made if missing. Off local folders this rewrites the file: one writer only."""
        target = self.local_path(path)
        with self._filesystem("write", path):
            if target is None:
                old = self.read_bytes(path) if self.exists(path) else b""
                self.publish(path, old + text.encode())
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("a", encoding="utf-8") as file:
                    file.write(text)

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with everything below it; nothing happens where there is none."""
        if self.exists(path):
            with self._filesystem("delete", path) as (fs, place):
                fs.rm(place, recursive=True)

    def probe(self) -> None:
        """Write, read back and delete a small object; a `StorageError` says what to do where that fails."""
        name = f".ebmscale-probe-{uuid.uuid4().hex}"
        try:
            self.publish(name, name.encode())
            same = self.read_bytes(name) == name.encode()
            self.delete(name)
        except StorageError as error:
            raise StorageError(
                f"{self.url} cannot be written to ({_reason(error.__cause__ or error)}); "
                "choose another storage.url or grant this account read, write and delete there."
            ) from error
        if not same:
            raise StorageError(f"{self.url} gave back other bytes than were written; choose another storage.url.")

    @contextmanager
    def _filesystem(self, action: str, path: str) -> Iterator[tuple[Any, str]]:
        """The filesystem of fsspec and the place of `path` in it; OSErrors inside become `StorageError`."""
        url = self.url_of(path)
        try:
            yield fsspec.core.url_to_fs(url, **self.options)
        except FileNotFoundError as error:
            raise StorageError(f"Cannot {action} {url}: it does not exist; check the address.") from error
        except (OSError, ImportError) as error:
            raise StorageError(
                f"Cannot {action} {url} ({_reason(error)}); check the address and your rights."
            ) from error
        except ValueError as error:
            if "Protocol not known" not in str(error):
                raise
            raise StorageError(f"Cannot {action} {url}: fsspec knows no such kind of address; check it.") from error


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


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
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
