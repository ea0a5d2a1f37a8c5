"""Reading the files in cluster/: where they are, and the training commands that they contain."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from ebmscale.config import RunConfig, load_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def comment_of(name: str) -> str:
    """The comment at a file's head, as one line."""
    lines = (CLUSTER / name).read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def training_of(command: str) -> RunConfig:
    """The configuration that a command line trains: its file and overrides go through the program's own reader."""
    words = shlex.split(re.split("[;#]", command)[0])
    after = words[next(i for i, word in enumerate(words) if word in ("train", "submit")) + 1 :]
    config = next(word for word in after if word.endswith(".yaml"))
    overrides = [word for word in after if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+=.*", word)]
    assert overrides, command
    return load_config(ROOT / config.removeprefix("/app/"), overrides)
