"""Draws the effects of settings: a panel for every comparison, a dot for every seed, a bar at the mean of a row.

    python tools/bench/effects.py runs/compare-effect-*/comparison.json --out tools/bench/effects.png

The files are those of `ebmscale compare` (configs/compare/effect_*.yaml). The upper panels show the Frechet distance,
the lower ones the error of reconstructions.
"""

import argparse
import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from ebmscale.report.comparison import summarise
from ebmscale.report.result import Result

DOT, BAR = "#0072b2", "#d55e00"


def draw(files: list[Path], out: Path) -> None:
    """Writes the figure."""
    trees = [json.loads(file.read_text()) for file in files]
    figure = Figure(figsize=(4 * len(trees), 5.5), layout="constrained")
    axes = figure.subplots(2, len(trees), squeeze=False)
    for column, tree in enumerate(trees):
        rows = summarise([Result(**result) for result in tree["results"]])
        distance = next(name for row in rows.values() for name in row if name.startswith(("FD", "FID")))
        for place, quantity in ((0, distance), (1, "mse")):
            panel = axes[place][column]
            for index, measured in enumerate(rows.values()):
                if not (values := measured.get(quantity)):  # a row whose runs failed
                    continue
                mean = statistics.fmean(values)
                panel.plot(values, [index] * len(values), "o", color=DOT, alpha=0.6, markersize=4)
                panel.plot([mean, mean], [index - 0.3, index + 0.3], color=BAR)
            panel.set_yticks(range(len(rows)), list(rows), fontsize=8)
            panel.invert_yaxis()
            panel.set_xlabel(quantity, fontsize=8)
            panel.tick_params(axis="x", labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(tree["name"], fontsize=10)
    figure.savefig(out, dpi=110)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("effects.png"))
    given = parser.parse_args()
    draw(given.files, given.out)


if __name__ == "__main__":
    main()
