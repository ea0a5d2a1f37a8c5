"""Names from foreign file systems and archives as text that can be printed, stored and hashed."""

import os


def printable(name: str | os.PathLike[str]) -> str:
    r"""The name, with each byte that is not UTF-8 as an escape such as \xe9, so that different names stay different.

    It is for names that a set stores: keys, classes and parts. `terminal.shown` is for the screen.
    """
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
