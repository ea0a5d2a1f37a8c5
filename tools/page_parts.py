"""The command `tools/pages`."""

import argparse
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ebmscale.config.table import key_tables
from ebmscale.documents import load_yaml
from ebmscale.errors import ConfigError
from tools import results
from tools.gpu import page as gpu
from tools.gpu.record import FILE

ROOT = Path(__file__).parents[1]
PAGES = ("configs/README.md", "configs/compare/README.md", "tools/bench/README.md")
KINDS: dict[str, Callable[[str], str]] = {
    "keys": lambda _: key_tables(),
    "results": results.block,
    "gpu": lambda _: gpu.block(),
}
"""What writes a part, from the words in its first line."""
_PART = re.compile(r"<!-- (\w+):(?: (\S+),)? written by tools/pages -->\n.*?<!-- end of \1 -->", re.DOTALL)


def written(text: str) -> str:
    """A page with its generated parts as they are now."""

    def part(found: re.Match[str]) -> str:
        kind, about = found[1], found[2]
        first = f"{kind}: {about}, " if about else f"{kind}: "
        return f"<!-- {first}written by tools/pages -->\n\n{KINDS[kind](about).strip()}\n\n<!-- end of {kind} -->"

    return _PART.sub(part, text)


def figures() -> dict[Path, str]:
    """The files of figures, and the texts of the results that each shows."""
    files = sorted(file for file in results.FOLDER.glob("*.json") if file.name.count(".") == 1)
    found = {file.with_suffix(".svg"): file.read_text() for file in files}
    return {file: text for file, text in found.items() if '"nats"' in text}


def out_of_date() -> list[str]:
    """The pages and figures that differ from what they are made of."""
    pages = [page for page in PAGES if (text := (ROOT / page).read_text()) != written(text)]
    stale = [
        file.name
        for file, text in figures().items()
        if not file.exists() or results.digest(text) not in file.read_text()
    ]
    return [*pages, *stale]


def write() -> None:
    """Writes all pages, and the figures of results that have changed."""
    for page in PAGES:
        (ROOT / page).write_text(written((ROOT / page).read_text()))
    for file, text in figures().items():
        if not file.exists() or results.digest(text) not in file.read_text():
            file.write_bytes(results.figure(file.stem, text))


def keep(file: Path) -> Path:
    """Keeps the results of a comparison; returns the file in the repository."""
    try:
        tree = json.loads(file.read_text())
        name = tree["name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SystemExit(f"error: {file} is not a comparison.json that `ebmscale compare` wrote.") from None
    results.FOLDER.mkdir(exist_ok=True)
    kept = results.FOLDER / f"{name}.json"
    kept.write_text(results.as_text(results.small_form(tree, _file_of(name))))
    return kept


def _file_of(name: str) -> str:
    """The file of a comparison of this name, below the repository."""
    for file in sorted((ROOT / "configs" / "compare").glob("*.yaml")):
        tree = load_yaml(file, f"the comparison {file}", ConfigError)
        if isinstance(tree, dict) and tree.get("name") == name:
            return str(file.relative_to(ROOT))
    raise SystemExit(f"error: configs/compare has no comparison named {name}.")


def main(about: str | None, arguments: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where something is out of date"
    )
    parser.add_argument("--keep", type=Path, nargs="+", default=[], metavar="FILE", help="a comparison.json")
    parser.add_argument("--keep-gpu", type=Path, metavar="FOLDER", help="what tools/gpu_check wrote")
    given = parser.parse_args(arguments)
    if given.check:
        stale = out_of_date()
        print("\n".join(stale))
        return 1 if stale else 0
    for file in given.keep:
        print(keep(file).relative_to(ROOT))
    if given.keep_gpu is not None:
        if not (given.keep_gpu / FILE).is_file():
            raise SystemExit(f"error: {given.keep_gpu} has no {FILE}; give the folder that tools/gpu_check wrote.")
        shutil.copyfile(given.keep_gpu / FILE, gpu.FOLDER / FILE)
    write()
    return 0
