"""Access to Ray: where its token is, who can read it, and how to start a Ray that nobody else can use.

Anyone who reaches a Ray cluster and knows its token can run any program on it, as the user who started it.
"""

import importlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ebmscale.errors import ConfigError
from ebmscale.runtime.variables import variables

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
ON_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""If this variable is 0, Ray's processes use the address 127.0.0.1 and listen there alone, not on all interfaces."""


def default_file() -> Path:
    """The file that Ray reads when the environment names none."""
    return Path.home() / ".ray" / "auth_token"


def token_place() -> str | None:
    """The variable or file in which Ray will find a token; None if there is no token."""
    if os.environ.get(TOKEN):
        return TOKEN
    path = os.environ.get(TOKEN_PATH)
    if path:
        return path if Path(path).is_file() else None
    return str(default_file()) if default_file().is_file() else None


def exposed_file() -> Path | None:
    """The token's file if users other than its owner can read it, else None."""
    place = token_place()
    if place is None or place == TOKEN or not Path(place).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return None
    return Path(place)


def ensure_token() -> None:
    """Makes a token if there is none, and makes Ray's default file readable by its owner alone.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = default_file()
    if token_place() is None and not os.environ.get(TOKEN_PATH):
        try:
            _make(path)
        except OSError as error:
            raise ConfigError(
                f"Ray's token cannot be written to {path} ({error.strerror}); name another file by {TOKEN_PATH}, or "
                f"set {TOKEN}."
            ) from error
    if exposed_file() == path:
        with suppress(PermissionError):  # the file belongs to another user
            path.chmod(0o600)


def _make(path: Path) -> None:
    """Writes a new token in one atomic operation; keeps the file that another process wrote first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".auth_token-") as file:  # of mode 0600
        file.write(os.urandom(32).hex())
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)


@contextmanager
def private_ray() -> Iterator[None]:
    """A Ray that starts inside this context listens on 127.0.0.1 alone, and requires the token.

    Raises:
        ConfigError: there is no token, and it cannot be written.
    """
    ensure_token()
    with on_loopback(), variables({MODE: "token"}):
        _read_mode()
        yield
    _read_mode()


@contextmanager
def on_loopback() -> Iterator[None]:
    """Inside this context Ray uses 127.0.0.1 as this machine's address, and not an address of the network."""
    from ray._private import ray_constants  # noqa: PLC0415 (it has read the environment already)

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with variables({ON_LOOPBACK: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def answer_refusal() -> bool:
    """Turns the token on after a refusal; returns False if RAY_AUTH_MODE is set already or there is no token."""
    if os.environ.get(MODE) is not None or token_place() is None:
        return False
    os.environ[MODE] = "token"
    _read_mode()
    return True


def _read_mode() -> None:
    """Makes Ray read its environment again; by itself it reads it once."""
    raylet: Any = importlib.import_module("ray._raylet")  # it has no types
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
