"""The names that fsspec's filesystems use for an address and for the files below it.

Filesystems interpret patterns, versions, chains and escapes in names. Here a name is only a name: the filesystems parse
the server's part of an address and nothing else.
"""

import html
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from ebmscale.address import Address

S3 = ("s3", "s3a")


def place_of(fs: Any, url: Address) -> str:
    """What fsspec calls the place that an address names."""
    if url.is_local or url.is_web:
        return url.real
    server, path = url.place
    root = fs._strip_protocol(f"{url.scheme}://{server}").rstrip("/") if server else ""
    return f"{root}/{path.strip('/')}" if path.strip("/") else root


def problem_of(url: Address, path: str) -> str | None:
    """Why there cannot be a file or folder of this path below an address, None if there can."""
    if "\0" in path:
        return "it has a zero byte in its name"
    if ".." in path.split("/"):
        return "it lies outside of the folder"
    if url.scheme in S3 and "?versionId=" in path:
        return "S3 takes a part of its name for a version"
    if not url.is_local and not url.is_web and not _is_utf8(path):
        return "its name is not UTF-8"
    return None


def remove(fs: Any, place: str) -> None:
    """Deletes a file, or a folder with all that is below it, through an `InterruptibleFilesystem`."""
    below = fs.find(place, withdirs=True, detail=True)
    folders = {name for name, about in below.items() if about.get("type") == "directory" and not name.endswith("/")}
    fs.each("rm_file", [name for name in below if name not in folders])
    fs.invalidate_cache()
    if fs.info(place)["type"] != "directory":
        fs.rm_file(place)
        return
    for folder in sorted({place, *folders}, key=len, reverse=True):
        with suppress(FileNotFoundError):  # many storages have no folders of their own
            fs.rmdir(folder)


def linked(place: str, links: list[str]) -> list[str]:
    """The names directly below a web page, from the addresses that it links to."""
    above, names = f"{place.rstrip('/')}/", []
    for link in map(html.unescape, links):
        name = link.removeprefix(above).partition("?")[0].partition("#")[0].strip("/")
        if link.startswith(above) and name not in ("", ".", "..") and "/" not in name:
            names.append(unquote(name, errors="surrogateescape"))
    return names


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
