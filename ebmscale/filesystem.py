"""One request to the filesystem behind an address: opened, limited in time, and repeated after temporary failures.

The filesystem is looked up at each request, in the process and thread that makes it (fsspec keeps one per process,
thread and set of options).

A request that fails for a temporary reason (time-outs, lost connections, busy servers, truncated bodies) is repeated
after pauses that double and vary at random. Any other failure becomes one `StorageError`. Every request has a time
limit, and a stop ends every wait (see `waits`).
"""

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential_jitter

from ebmscale.address import Address
from ebmscale.errors import DamagedError, NoRangesError, NotFoundError, StorageError
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
from ebmscale.local_files import Irregular
from ebmscale.places import S3, place_of
from ebmscale.waits import InterruptibleFilesystem, TooSlow, Wait

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S, JITTER_S = 0.1, 20.0, 0.2
READS_AT_ONCE = 16  # requests that are in flight together, where the storage is remote
LARGEST_PUT = 5 * 2**30  # bytes that S3 takes in one request
REQUEST_S, TOTAL_S = 40.0, 120.0  # for one request, and for it with all its repetitions;
SLOWEST_BYTES_S = 200_000  # both grow by the time that the bytes take at this rate
INTERRUPTIBLE = (*S3, "http", "https", "memory")  # a stop can interrupt these clients


@dataclass(frozen=True)
class Requester:
    """How requests are made.

    Attributes:
        options: what fsspec's filesystem takes.
        retries: how often a request that failed for a temporary reason is repeated.
        stop: once it is set, every wait ends with `Interrupted`.
    """

    options: Mapping[str, Any]
    retries: int
    stop: threading.Event | None

    def request(
        self, action: str, url: Address, work: Callable[[Any, str], T], what: str = "", num_bytes: int = 0
    ) -> T:
        """The result of `work(filesystem, place)`.

        Args:
            action: what is done, for the message: read, write, list, delete.
            url: of the file or folder.
            work: the request.
            what: part of the file, for the message.
            num_bytes: that the request carries.

        Raises:
            StorageError: the request failed; `NotFoundError` where a file to read is missing, `DamagedError` where
                something else than a file is there.
        """
        longer_s = num_bytes / SLOWEST_BYTES_S
        wait = Wait(REQUEST_S + longer_s, self.stop)
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            stop=stop_after_attempt(self.retries + 1) | stop_after_delay(TOTAL_S + longer_s),
            wait=wait_exponential_jitter(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S, jitter=JITTER_S),
            sleep=wait.sleep,
            reraise=True,
        )

        def attempt() -> T:
            fs = _open(url, self.options)
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
            kind = NoRangesError if isinstance(error, _NoRanges) else kind
            kind = DamagedError if isinstance(error, Irregular) else kind
            raise kind(url.hidden_in(sentence(f"{action} {what}{url}", error, tries))) from error


class _NoRanges(OSError):
    """A server sent more than the range that was asked for."""


def read_whole(fs: Any, place: str, longest_s: float | None) -> bytes:
    """The whole content of a file. A large file gets more time, by its size, but at most `longest_s`."""
    try:
        return fs.cat_file(place)
    except TooSlow:
        size = fs.info(place)["size"] or 0
        limit_s = REQUEST_S + size / SLOWEST_BYTES_S
        if limit_s < 2 * REQUEST_S:
            raise
        return fs.within(limit_s if longest_s is None else min(limit_s, longest_s)).cat_file(place)


def read_part(fs: Any, place: str, start: int, length: int) -> bytes:
    """`length` bytes from byte `start` on; fewer only where the file ends before.

    Raises:
        OSError: other bytes came than were asked for.
    """
    try:
        data = fs.cat_file(place, start=start, end=start + length)
    except Exception as error:
        if status(error) == 416:  # the file ends before `start`
            return b""
        raise
    if len(data) == length:
        return data
    expected = max(0, min(length, fs.info(place)["size"] - start))
    if len(data) < expected:
        raise TruncatedRead(f"{len(data)} bytes came where {expected} were asked for")
    if len(data) > expected:
        raise _NoRanges(f"the server sends {len(data)} bytes where {expected} were asked for: it serves no byte ranges")
    return data


def upload_options(url: Address, data: bytes) -> dict[str, Any]:
    """The options of an upload by one request that let the server check it."""
    if url.scheme not in S3 or len(data) >= LARGEST_PUT:
        return {}
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"ContentMD5": base64.b64encode(digest).decode(), "chunksize": LARGEST_PUT}


def _open(url: Address, options: Mapping[str, Any]) -> Any:
    """The filesystem of fsspec; it tries once, since `Requester.request` tries again."""
    kind = fsspec.get_filesystem_class(url.scheme or "file")
    options = dict(options)
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


def _web_options() -> dict[str, Any]:
    """Turns off the client's own time limits, since `Wait` limits each request."""
    import aiohttp  # noqa: PLC0415 (slow to import)

    return {"timeout": aiohttp.ClientTimeout(total=None)}
