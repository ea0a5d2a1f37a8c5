"""Names from foreign file systems and archives as text that can be printed, stored and hashed."""

import os


def printable(name: str | os.PathLike[str]) -> str:
    r"""The name, with the bytes that are no UTF-8 written as \xE9; such names stay different from each other."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
