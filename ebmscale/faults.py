"""Failures of a storage: which ones are temporary, and what the message says about the others.

Clients of object stores raise exceptions of their own (botocore, aiohttp, ...). They are recognised by the names of
their classes and modules, so that nothing but the client in use needs to be installed.
"""

import errno
from collections.abc import Iterator

_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "urllib3", "requests", "fsspec", "s3fs", "gcsfs", "google"}

_PASSING_NAMES = {
    "ClientConnectionError", "ClientConnectorError", "ClientOSError", "ClientPayloadError", "ConnectionClosedError",
    "ConnectTimeoutError", "EndpointConnectionError", "HTTPClientError", "IncompleteRead", "IncompleteReadError",
    "ReadTimeoutError", "ResponseParserError", "ResponseStreamingError", "ServerDisconnectedError",
    "ServerTimeoutError",
}  # fmt: skip
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown", "XAmzContentSHA256Mismatch"}

_ADVICE = {
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or choose a profile with AWS_PROFILE, "
    "and for public data set `anonymous: true` beside the url",
    "PartialCredentialsError": "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "set AWS_PROFILE to a profile that your AWS configuration file has",
    "PermissionError": "check that these credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE) may do this there",
    "EndpointConnectionError": "check AWS_ENDPOINT_URL (or endpoint_url beside the url) and that the server runs",
    "ClientConnectorError": "check the address and that the server runs",
    "Irregular": "move it away or give another address",
}
_FULL = {errno.ENOSPC: "free some space there", errno.EDQUOT: "free some of this account's space there"}


class TruncatedRead(OSError):
    """Fewer bytes came than the file holds there."""


class Unopenable(OSError):
    """The client of this kind of storage cannot be made from the address and its options."""


def is_transient(error: BaseException) -> bool:
    """Whether a new attempt may help: time-outs, lost connections, truncated bodies, busy or failing servers."""
    return any(_passes(one) for one in _chain(error))


def is_missing(error: BaseException) -> bool:
    """Whether an exception says that nothing is there; fsspec reports a failing HTTP server in the same way."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return False
    gone = (None, 404, 410, 403)  # a public bucket that may not be listed answers 403 for what it does not have
    return not is_transient(error) and not _leaves_the_web(error) and status(error) in gone


def is_storage_failure(error: BaseException) -> bool:
    """Whether an exception comes from the storage or its client, and not from a mistake in the program."""
    if isinstance(error, OSError | ImportError | NotImplementedError):
        return True
    if isinstance(error, ValueError) and ("Protocol not known" in str(error) or "Invalid endpoint" in str(error)):
        return True
    return type(error).__module__.partition(".")[0] in _CLIENTS


def status(error: BaseException) -> int | None:
    """The HTTP status behind an exception, None if there is none."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        found = found or getattr(one, "status", None)
        if isinstance(found, int):
            return found
    return None


def describe(error: BaseException) -> str:
    """The cause in a few words."""
    if _leaves_the_web(error):
        return "the server redirects to an address that is not http(s)"
    if isinstance(error, FileNotFoundError) and status(error) is not None:
        return f"HTTP status {status(error)}"
    if isinstance(error, NotImplementedError):
        return "this kind of address can only be read"
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return str(error)
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")


def advice(error: BaseException) -> str:
    """What to do about it."""
    if space := space_advice(error):
        return space
    local = isinstance(error, PermissionError) and error.errno is not None  # of this machine's file system
    for one in () if local else _chain(error):
        if type(one).__name__ in _ADVICE:
            return _ADVICE[type(one).__name__]
    return "check the address and your rights"


def space_advice(error: BaseException) -> str | None:
    """What to do about a disk or a quota that is full; None about anything else."""
    codes = (one.errno for one in _chain(error) if isinstance(one, OSError))
    return next((_FULL[code] for code in codes if code in _FULL), None)


def sentence(what: str, error: BaseException, tries: str = "") -> str:
    """The whole sentence: what cannot be done, the cause, and what to do."""
    if is_missing(error):
        return f"Cannot {what}: it does not exist; check the address."
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return f"Cannot {what}: fsspec knows no such kind of address; check it."
    return f"Cannot {what} ({describe(error)}{tries}); {advice(error)}."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _leaves_the_web(error: BaseException) -> bool:
    """Whether a server redirected to an address of another kind, which is never followed."""
    return any(type(one).__name__.startswith("NonHttpUrl") for one in _chain(error))


def _passes(error: BaseException) -> bool:
    if isinstance(error, TimeoutError | ConnectionError | TruncatedRead):
        return True
    response = getattr(error, "response", None)
    if isinstance(response, dict) and response.get("Error", {}).get("Code") in _PASSING_CODES:
        return True
    number = status(error)
    if number is not None:
        return number in _PASSING_STATUS
    of_client = type(error).__module__.partition(".")[0] in _CLIENTS
    return of_client and any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)
