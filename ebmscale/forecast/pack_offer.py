"""The message for an address that holds no packed set. It names the command that packs the files that lie there."""

import os
import shlex
from pathlib import Path
from statistics import median

from PIL import Image

from ebmscale.data.formats.images import ENDINGS
from ebmscale.data.manifest import FILE
from ebmscale.networks import ARCHITECTURES
from ebmscale.storage import Storage

MOST_FILES = 20_000  # of a folder, that are examined
MOST_OPENED = 24


def pack_offer(storage: Storage, given: str) -> str | None:
    """A sentence that names the command to pack the files at an address.

    Returns None if the address holds a packed set already.

    Args:
        storage: the address.
        given: the address as the user wrote it.
    """
    if storage.exists(FILE):
        return None
    root = storage.local_path()
    if root is None or not storage.exists():
        where = "does not exist" if not storage.exists() else "holds no packed set"
        return f"{given} {where}; write one with `ebmscale pack FORMAT SRC URL`."
    pictures, arrays = _found(root)
    target = f"data/{Path(given).name or 'images'}"
    target = target if Path(target).absolute() != root.absolute() else f"{target}-packed"
    names = shlex.quote(given), shlex.quote(target)
    if pictures:
        size = _side(pictures)
        what = f"{len(pictures):,} pictures" if len(pictures) < MOST_FILES else f"{MOST_FILES:,} pictures or more"
        command = f"ebmscale pack folder {names[0]} {names[1]} --size {size}"
    elif arrays:
        what, command = f"{len(arrays):,} files of arrays", f"ebmscale pack npy {names[0]} {names[1]}"
    else:
        return f"{given} holds no packed set and no pictures; see `ebmscale pack --help` for the formats."
    return f"{given} holds {what} and no packed set: pack them with `{command}`, then `ebmscale init {names[1]}`."


def _found(root: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and arrays at a path."""
    if root.is_file():
        files = [root]
    else:
        files = [Path(place, name) for place, _, names in os.walk(root) for name in sorted(names)[:MOST_FILES]]
    pictures = [path for path in files if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    return pictures[:MOST_FILES], [path for path in files if path.suffix.lower() in (".npy", ".npz")]


def _side(pictures: list[Path]) -> int:
    """The largest side for which there is a network and that is at most the median of the pictures' shorter sides."""
    sides = []
    for path in pictures[:: max(1, len(pictures) // MOST_OPENED)]:
        try:
            with Image.open(path) as picture:
                sides.append(min(picture.size))
        except Exception:  # the errors of damaged pictures have no common class
            continue
    known = sorted({one.size for one in ARCHITECTURES.values()})
    fitting = [side for side in known if side <= median(sides)] if sides else []
    return max(fitting, default=known[0])
