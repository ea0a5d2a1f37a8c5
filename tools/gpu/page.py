"""What the page on benchmarks says of the records of `tools/gpu_check`, which the repository keeps beside this file."""

from pathlib import Path
from typing import Any

from tools.gpu.record import read_all

FOLDER = Path(__file__).parent
NOTHING = "There are no figures of this command on a GPU yet.\n"


def block(folder: Path = FOLDER) -> str:
    """A table with a line for every part, its state and its figures; records of small sizes do not count."""
    records = [record for record in read_all(folder).values() if not record["small"]]
    if not records:
        return NOTHING
    lines = ["| part | state | s | figures |", "|---|---|---:|---|"]
    for record in records:
        figures = "; ".join(f"{name}: {_shown(value)}" for name, value in record["values"].items() if name != "tests")
        lines.append(f"| {record['part']} | {record['state']} | {record['seconds']:.0f} | {figures} |")
    places = dict.fromkeys(
        f"commit {record['commit'] or 'unknown'}, {record['machine'].get('gpu', record['machine'].get('processor'))}, "
        f"torch {record['machine'].get('torch')}"
        for record in records
    )
    return "\n".join(lines) + f"\n\n{'; '.join(places)}.\n"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " / ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
