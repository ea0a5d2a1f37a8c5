"""Configurations, comparisons and search spaces that come with the package, by the name `preset:NAME`.

They are the files of `configs/`, which the wheel holds as `ebmscale/presets`.
"""

import difflib
from pathlib import Path
from typing import NamedTuple

from ebmscale.documents import excerpt
from ebmscale.errors import ConfigError

PREFIX = "preset:"
FOLDER = Path(__file__).parents[1] / "presets"
KINDS = {"": "configuration", "compare": "comparison", "tune": "search space"}
"""What the files of a folder below `FOLDER` are."""


class Preset(NamedTuple):
    """A file that comes with the package.

    Attributes:
        name: what stands after `preset:`, such as `digits` or `compare/digits`.
        kind: a value of `KINDS`.
        about: the first sentence of the comment at its top.
        path: where it lies.
    """

    name: str
    kind: str
    about: str
    path: Path


def presets() -> list[Preset]:
    """All presets, kind by kind and by name."""
    files = [(folder, path) for folder in KINDS for path in sorted((FOLDER / folder).glob("*.yaml"))]
    return [Preset(_name(folder, path), KINDS[folder], _about(path), path) for folder, path in files]


def preset_names() -> list[str]:
    """The names of all presets."""
    return [_name(folder, path) for folder in KINDS for path in sorted((FOLDER / folder).glob("*.yaml"))]


def file_of(given: str | Path, *folders: str) -> Path:
    """The file that a path or `preset:NAME` means.

    Args:
        given: the path or the name.
        folders: keys of `KINDS` whose files are of use here.

    Raises:
        ConfigError: there is no such preset, and the sentence names the nearest one; or it is of another kind.
    """
    if not str(given).startswith(PREFIX):
        return Path(given)
    name, known = str(given).removeprefix(PREFIX), preset_names()
    if name in known:
        folder = name.rpartition("/")[0]
        if folder not in folders:
            raise ConfigError(f"{given} is a {KINDS[folder]}, but a {KINDS[folders[0]]} is needed.")
        return FOLDER / f"{name}.yaml"
    match = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {PREFIX}{match[0]}?" if match else "`ebmscale presets` lists them."
    raise ConfigError(f"there is no preset {excerpt(name)}; {hint}")


def _name(folder: str, path: Path) -> str:
    return f"{folder}/{path.stem}" if folder else path.stem


def _about(path: Path) -> str:
    """The first sentence of the comment at the top of a file, without its full stop or colon."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#")
        if text == line or text.startswith("   "):
            break
        words += text.split()
    return " ".join(words).partition(". ")[0].rstrip(":.")
