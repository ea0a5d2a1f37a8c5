"""The version of this program, and the commit of its sources."""

import subprocess
from pathlib import Path

__version__ = "0.1.0"


def commit() -> str | None:
    """The commit that this program's sources are at, with `+` if they were changed since; None outside a checkout."""
    found = _git("rev-parse", "--short=7", "HEAD")
    if found is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{found}+" if changed else found


def _git(*arguments: str) -> str | None:
    """What git prints about the folder of the sources; None if it fails, or if they are not part of a checkout."""
    folder = Path(__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
