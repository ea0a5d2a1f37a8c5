"""Addresses of folders and files, whose text never shows a secret.

An `Address` is a `str` that can be printed, logged and saved: user names with passwords, and the values of a query
(signatures, tokens), are `***` in it. What is needed to open the place is in `real`, which stays in memory.
`clean` does the same for addresses that stand in any other text.
"""

import os
import re
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import GetCoreSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, core_schema

HIDDEN = "***"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAIN = re.compile(r"[A-Za-z0-9+.-]+::.*://", re.S)
_SHORT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/?)(?!/)")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`]+")
_FOLDERS = ("file", "local")
_WEB = ("http", "https")
_WITH_PLACE = (*_WEB, "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "ftp", "sftp", "ssh")
_KNOWN = (*_FOLDERS, *_WITH_PLACE, "memory", "hdfs", "webhdfs", "smb", "oss", "hf", "webdav", "wasb", "wasbs")
_PATH_SAFE = "/~!$&'()*+,;=:@"  # what a path may hold besides letters and digits (RFC 3986)
_LOST = re.compile(r"://\*{3}@|[?&#;][^=&#/]*=\*{3}|[?&#]\*{3}(?=[&#]|$)")
_QUERY_VALUE = re.compile(r"([?&#;][^=&#]*=)[^&#]+")
_BARE_QUERY = re.compile(r"([?#&])[^=&#]+(?=[&#]|$)")
_SECRET_VALUE = re.compile(
    r"([?&#;][^=&#/]*(?:sig|token|secret|passw|pwd|credential|key|auth|session|sas|code)[^=&#/]*=)[^&#]+", re.I
)


def clean(text: str) -> str:
    """Replaces the secrets of all addresses in a text by `***`, and escapes what UTF-8 cannot hold."""
    text = _printable(text)
    return _IN_TEXT.sub(_cleaned, text) if "://" in text else text


def _printable(text: str) -> str:
    """The text with each surrogate as an escape such as `\\udcff`, so that any file and any terminal takes it.

    It is for the texts of addresses and of messages. `data.names.printable` is for names that a set stores, and
    `terminal.shown` is for the screen.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _cleaned(found: re.Match[str]) -> str:
    url = found.group()
    core = url.rstrip(").,;:")
    return _without_secrets(core) + url[len(core) :]


def _without_secrets(url: str) -> str:
    scheme, _, rest = url.partition("://")
    place = re.match(r"[^/?#]*", rest)
    assert place is not None, "it matches the empty text"
    authority, tail = place.group(), rest[place.end() :]
    web = scheme.lower() in _WEB
    user, at, host = authority.rpartition("@")
    if at and (web or ":" in user):
        authority = f"{HIDDEN}@{host}"
    elif scheme.lower() != "memory" and re.search(r":(?!\d*$)[^\]]*$", authority) and "@" in tail:
        authority, tail = HIDDEN, f"@{tail.rpartition('@')[2]}"  # a password with a slash or a question mark in it
    if web:
        tail = _BARE_QUERY.sub(rf"\1{HIDDEN}", _QUERY_VALUE.sub(rf"\1{HIDDEN}", tail))
    else:
        tail = _SECRET_VALUE.sub(rf"\1{HIDDEN}", tail)
    return f"{scheme}://{authority}{tail}"


class Address(str):
    """Where files lie: a path of this machine, or `scheme://place`. Its text shows no secret; a pickle keeps `real`.

    Attributes:
        real: the whole address, with its secrets.
    """

    real: str

    def __new__(cls, text: str) -> "Address":
        """Takes any text unchanged; `parse` checks that it is an address."""
        real = text.real if isinstance(text, Address) else str(text)
        shown = _without_secrets(_printable(real)) if _SCHEME.match(real) else clean(real)
        self = super().__new__(cls, shown)
        self.real = real
        return self

    def __reduce__(self) -> Any:
        return Address, (self.real,)

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> "Address":
        """An address that a user gave, made absolute; `file:` addresses become paths.

        Raises:
            ValueError: the text is not an address; the message is a sentence without its full stop.
        """
        real = text.real if isinstance(text, Address) else _text_of(text)
        shown = Address(real)
        if not real:
            raise ValueError("the address is empty; give a path, or . for the working directory")
        if "\0" in real:
            raise ValueError(f"the address {shown!r} holds a zero byte; check it")
        if _CHAIN.match(real):
            raise ValueError(f"{shown} is a chain of addresses, which cannot be read; give the place itself")
        remote = _SCHEME.match(real)
        if remote is None:
            return cls(os.path.abspath(os.path.expanduser(_path(real, shown))))
        scheme, place = remote[1].lower(), real[remote.end() :]
        if scheme in _FOLDERS:
            place = place.removeprefix("localhost") if place.startswith("localhost/") else place
            return cls(os.path.abspath(os.path.expanduser(place)))
        if _LOST.search(real):
            raise ValueError(
                f"{shown} has lost its user, password or token, which are never saved; give the whole address again"
            )
        if scheme in _WITH_PLACE and place[:1] in ("", "/"):
            raise ValueError(f"{shown} names no server or bucket; write {scheme}://{place.lstrip('/') or 'PLACE'}")
        if scheme in _WEB:
            authority, slash, path = place.partition("/")
            if not _is_server(authority):
                raise ValueError(f"{shown} names no server: its port or its brackets are wrong; check it")
            place = authority + slash + quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", path), safe=f"%?#{_PATH_SAFE}[]")
            path, query = _before_query(place)
            return cls(f"{scheme}://{path.rstrip('/')}{query}")
        return cls(f"{scheme}://{place.rstrip('/')}")

    @property
    def scheme(self) -> str:
        """`s3`, `https`, ...; empty for a path of this machine."""
        found = _SCHEME.match(self.real)
        return found[1].lower() if found else ""

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return not self.scheme

    @property
    def is_relative(self) -> bool:
        """Whether it is a path relative to the working directory."""
        return self.is_local and not os.path.isabs(os.path.expanduser(self.real))

    def absolute(self) -> "Address":
        """The same place as an absolute path, independent of the working directory."""
        return Address(os.path.abspath(os.path.expanduser(self.real))) if self.is_local else self

    @property
    def is_web(self) -> bool:
        """Whether it is reached by HTTP."""
        return self.scheme in _WEB

    @property
    def suffix(self) -> str:
        """The ending of its last name, `.npz`; empty if it has none."""
        base = _before_query(self.real)[0] if self.is_web else self.real
        return os.path.splitext(base.rpartition("/")[2])[1]

    @property
    def has_secrets(self) -> bool:
        """Whether its text hides a secret."""
        return not self.is_local and str(self) != _printable(self.real)

    def hidden_in(self, text: str) -> str:
        """The words of a storage's client, without the user and the password of this address."""
        user, at, _ = self.real.partition("://")[2].partition("/")[0].rpartition("@")
        return text.replace(f"{user}@", f"{HIDDEN}@") if at and self.has_secrets else text

    @property
    def place(self) -> tuple[str, str]:
        """Server or bucket (empty if there is none), and the path below it, as they are opened."""
        if self.is_local or self.scheme == "memory":
            return "", self.real.removeprefix("memory://")
        server, _, path = self.real.partition("://")[2].partition("/")
        return server, path

    def below(self, path: str) -> "Address":
        """The address of a file or folder below. Each part of `path` is a plain name, without patterns or escapes."""
        path = path.strip("/")
        if not path:
            return self
        if self.is_web:
            base, query = _before_query(self.real)
            return Address(f"{base.rstrip('/')}/{quote(path, safe=_PATH_SAFE, errors='surrogateescape')}{query}")
        return Address(f"{self.real}{'' if self.real.endswith('/') else '/'}{path}")

    def parted(self) -> tuple["Address", str]:
        """The folder of a file, and the file's name.

        Raises:
            ValueError: it names no file; see `parse`.
        """
        if self.is_local:
            folder, name = os.path.split(self.real)
            parted = Address(folder), name
        else:
            base, query = _before_query(self.real) if self.is_web else (self.real, "")
            server, path = Address(base).place
            folder, _, name = path.rpartition("/")
            above = "/".join(part for part in (server, folder) if part)
            parted = Address(f"{self.scheme}://{above}{query}"), unquote(name) if self.is_web else name
        if not parted[1]:
            raise ValueError(f"{self} names no file; give a file in a folder or a bucket")
        return parted

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            cls._validated,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(cls._serialised, info_arg=True),
        )

    @classmethod
    def _validated(cls, value: Any, handler: Any) -> "Address":
        """Keeps the address as given and refuses what is not an address; an address that lost its secrets is kept."""
        address = value if isinstance(value, Address) else cls(handler(value))
        if not _LOST.search(address.real):
            cls.parse(address)
        return address

    def _serialised(self, info: SerializationInfo) -> str:
        """The address itself for Python values, its text without secrets for files."""
        return self if info.mode == "python" else str(self)


def _text_of(given: str | os.PathLike[str]) -> str:
    """The text of an address that came from a caller's own program."""
    text: Any = given if isinstance(given, str) else getattr(given, "__fspath__", lambda: None)()
    if not isinstance(text, str):
        raise ValueError(f"{given!r} is not an address; give text or a path")
    return text


def _path(text: str, shown: str) -> str:
    """The path that a text without `://` means."""
    short = _SHORT.match(text)
    if short is None or short[1].lower() not in _KNOWN:
        return text
    scheme, rest = short[1].lower(), text[short.end() :]
    if scheme in _FOLDERS and short[2]:
        return f"/{rest}"
    raise ValueError(f"{shown} is not an address; write {scheme}://{clean(rest)}, or ./{shown} for a file of that name")


def _is_server(authority: str) -> bool:
    """Whether brackets and port of `user:password@host:port` are those of a server."""
    host = authority.rpartition("@")[2]
    try:
        parts = urlsplit(f"//{host}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _before_query(url: str) -> tuple[str, str]:
    """A web address, split before its query."""
    found = re.search(r"[?#]", url)
    return (url, "") if found is None else (url[: found.start()], url[found.start() :])
