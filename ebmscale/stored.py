"""Reads files of a run, a search or a data set without trust: within a limit of bytes, in the form of a model.

Anyone who can write to a storage can put anything there. All documents are read here. A document that is not a
regular file, is too large, or has the wrong form raises an error with one sentence.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ebmscale.documents import read_json
from ebmscale.errors import DamagedError, EbmscaleError
from ebmscale.local_files import irregular
from ebmscale.storage import Storage

T = TypeVar("T")

_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}

DOCUMENT_BYTES = 64 * 2**20
"""The most that a document may have, unless its reader says otherwise."""

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Size = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Number = Annotated[float, Field(strict=True)]
FileName = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$", max_length=255)]
"""A name in a folder: no path, not hidden, no control characters."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Stored(BaseModel):
    """What a document holds. Keys that a later version adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def read_file(storage: Storage, path: str, limit: int, error: type[EbmscaleError] = DamagedError) -> bytes:
    """The whole content of a file of at most `limit` bytes.

    Raises:
        NotFoundError: it is not there.
        StorageError: the storage refuses.
        EbmscaleError: an `error`, where it is larger, or no regular file.
    """
    check_regular(storage, path, error)
    size = storage.size(path)
    if size is not None and size > limit:  # a server need not know it
        raise error(f"{storage.url_of(path)} is damaged: it has {size:,} bytes, and at most {limit:,} belong there.")
    return storage.read_bytes(path)


def check_regular(storage: Storage, path: str, error: type[EbmscaleError] = DamagedError) -> None:
    """Refuses what would never end or cannot be read: pipes, devices, folders.

    Raises:
        EbmscaleError: an `error`, where something else than a file is there.
    """
    local = storage.local_path(path)
    kind = None if local is None else irregular(local)
    if kind is not None:
        raise error(f"{storage.url_of(path)} is {kind}, but a file is needed; move it away or give another address.")


def read_document(
    storage: Storage,
    path: str,
    form: type[T],
    error: type[EbmscaleError] = DamagedError,
    limit: int = DOCUMENT_BYTES,
    non_finite: bool = False,
) -> T:
    """A JSON document in the form of a model, a dataclass or another type.

    Args:
        storage: where it lies.
        path: its place there.
        form: what it holds.
        error: the class of the error where it is something else.
        limit: bytes that it may have.
        non_finite: whether numbers may be NaN or infinite, as `json.dumps` writes them.

    Raises:
        NotFoundError: it is not there.
        StorageError: the storage refuses.
        EbmscaleError: an `error`, where it is too large, no JSON, or of another form.
    """
    where = storage.url_of(path)
    value = read_json(read_file(storage, path, limit, error), where, error, non_finite=non_finite)
    return as_form(value, form, where, error)


def _adapter_of(form: Any) -> TypeAdapter[Any]:
    """The validator of a form; made once, as that takes milliseconds."""
    if form not in _ADAPTERS:
        _ADAPTERS[form] = TypeAdapter(form)
    return _ADAPTERS[form]


def as_form(value: Any, form: type[T], what: str, error: type[EbmscaleError] = DamagedError) -> T:
    """Plain values in the form of a model, a dataclass or another type; `what` names them.

    Raises:
        EbmscaleError: an `error`, where they are of another form.
    """
    try:
        return _adapter_of(form).validate_python(value)
    except ValidationError as problem:
        raise error(f"{what} is damaged or of another version of ebmscale: {explain(problem)}.") from None


def digest(document: Mapping[str, Any]) -> str:
    """The sha256 of a document's content, however it is laid out; hexadecimal."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def explain(error: ValidationError) -> str:
    """The first problem in a few words."""
    problem = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part)[:60] for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:].rstrip(".")
    given = "" if problem["type"] in ("missing", "value_error") else f", not {_excerpt(problem['input'])}"
    return f"{where}: {message}{given}" if where else f"{message}{given}"


def _excerpt(value: Any) -> str:
    """A foreign value in a few characters; a container is named by its kind."""
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str):
        value = value[:40]
    elif isinstance(value, int) and value.bit_length() > 128:
        return "a number of many digits"
    return ascii(value)[:60]
