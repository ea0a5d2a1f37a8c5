"""The pages of the repository, and the commands in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
_NOT_PAGES = {".venv", ".pytest_cache", "build", "runs"}
PAGES = sorted(path for path in ROOT.rglob("*.md") if not _NOT_PAGES & set(path.relative_to(ROOT).parts))

_NAMES = "ebmscale|python|torchrun|ray|bash|pip|pytest|source|eval|docker|kubectl|sbatch|chrt"
_PROGRAM = re.compile(rf"(?:[A-Za-z_]+=\S+ )*(?:(?:{_NAMES})(?= [^ ])|(?:tools|cluster)/\w+ )")
_PLACEHOLDER = re.compile(r"\.\.\.|\*|(?<![\w{.=-])(?:[A-Z][A-Z_]*)(?![\w-])")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[str]:
    """All commands of a page: the lines of its indented blocks, without comments, and what stands `in a sentence`."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", text)
    return [*lines(page), *(_bare(one) for one in inline if _PROGRAM.match(one))]


def lines(page: Path) -> list[str]:
    """The commands in indented blocks, each as one line and without its comment."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).replace("\\\n", " ")
    found = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return [_bare(line) for line in found if _PROGRAM.match(line)]


def whole_commands(page: Path) -> list[str]:
    """The commands that can be run as they stand: the lines of blocks, and what is complete in a sentence."""
    return list(dict.fromkeys([*lines(page), *(one for one in commands(page) if not is_form(one))]))


def is_form(command: str) -> bool:
    """Whether a command only shows its form, with `RUN`, `...` or no argument in place of the user's own."""
    is_name = len(command.split()) == 2 and command.startswith(("ebmscale ", "ray ")) and command != "ebmscale doctor"
    return is_name or _PLACEHOLDER.search(command) is not None


def words_of_ours(command: str) -> list[str] | None:
    """The words after `ebmscale`; None where a line starts something else."""
    words = shlex.split(command)
    if "ebmscale" not in words:
        return None
    return words[words.index("ebmscale") + 1 :]


def _bare(line: str) -> str:
    return re.sub(r"\s+# .*$", "", " ".join(line.split())).strip()
