"""Results of comparisons that the repository keeps, in a small form, and their tables and figures on the pages.

`configs/compare/results/NAME.json` has the values of every row and seed, with the commit and the machine of each. It is
made of the `comparison.json` that `ebmscale compare` writes. What a page says of it is made of it alone.
"""

import hashlib
import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ebmscale.report.comparison import NATS, best, cell, cells_by_row, summarise
from ebmscale.report.pictures import STYLE
from ebmscale.report.result import Result
from ebmscale.report.shares import CEILING, SHARE, with_shares

FOLDER = Path(__file__).parents[1] / "configs" / "compare" / "results"
DIGITS = 6  # that a value keeps
DROPPED = ("num_", "mse_unit", "psnr", "gap_p", "log_z_bridge", "width")
DETAILS = {
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "mse": "held-out MSE",
    "bits_per_dim_upper": "bits a dimension, at least",
    "bits_per_dim_annealed": "at most",
    "stages": "stages",
    "samples": "samples",
}
SCORE = "auprc_"
PUBLISHED = "published"
WORST = "worst"


def small_form(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
    """What the repository keeps of a `comparison.json`.

    Args:
        tree: as it was read.
        file: of the comparison, below the repository.
    """
    origins: list[dict[str, Any]] = []
    results = []
    for one in tree["results"]:
        origin = {"commit": one.get("commit"), "machine": one.get("machine", {})}
        if origin not in origins:
            origins.append(origin)
        kept = {name: value for name, value in one["measured"].items() if not name.startswith(DROPPED)}
        more = {"failure": one["failure"]} if one["failure"] else {}
        if one.get("by_stage"):
            of_all = [{name: value for name, value in of.items() if _in_path(name)} for of in one["by_stage"]]
            more["by_stage"] = [_rounded(of) for of in of_all]
        results.append(
            {"row": one["row"], "seed": one["seed"], "origin": origins.index(origin), "values": _rounded(kept)}
        )
        results[-1] |= more
    return {"name": tree["name"], "file": file, "about": tree["about"], "origins": origins, "results": results}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}


def _in_path(name: str) -> bool:
    """Whether a quantity is shown by stage."""
    return name in ("stage", "cpu_s", "nats") or name.startswith(("FD-", "FID"))


def as_text(small: Mapping[str, Any]) -> str:
    """The small form as the text of a file: a run on a line."""
    lines = {name: json.dumps(value) for name, value in small.items()}
    lines["results"] = "[\n  " + ",\n  ".join(map(json.dumps, small["results"])) + "\n ]"
    return "{\n " + ",\n ".join(f'"{name}": {line}' for name, line in lines.items()) + "\n}\n"


def results_of(small: Mapping[str, Any]) -> list[Result]:
    """The results of a small form, with shares of the way."""
    found = []
    for one in small["results"]:
        origin = small["origins"][one["origin"]]
        path = tuple(one.get("by_stage", ()))
        found.append(Result(one["row"], one["seed"], "", one["values"], one.get("failure"), **origin, by_stage=path))
    return with_shares(found)


def block(name: str) -> str:
    """What a page says of a comparison: its tables, and where they were measured."""
    file = FOLDER / f"{name}.json"
    if not file.exists():
        return "Not measured yet.\n"
    small = json.loads(file.read_text())
    results = results_of(small)
    if any(key.startswith(SCORE) for result in results for key in result.measured):
        tables = [anomaly_table(results, _published(name))]
    else:
        tables = [distance_table(results), _table(results, _present(results, DETAILS)), stage_table(results)]
    if any("nats" in result.measured for result in results):
        tables.append(f"![distance and held-out nats against processor time, by row]({FOLDER.name}/{name}.svg)\n")
    return "\n".join([*filter(None, tables), origin(small)])


def distance_table(results: Sequence[Result]) -> str:
    """Distances with their ceilings, shares of the way and nats."""
    names = list(dict.fromkeys(name for result in results for name in result.measured))
    columns: dict[str, str] = {}
    for name in names:
        if name.startswith(("FD-", "FID")):
            short = name.removeprefix("FD-")
            columns |= {name: name, CEILING + name: "its ceiling", SHARE + short: "share of the way"}
        elif name.startswith(("KD-", "KID")) and not name.endswith("_error"):
            columns[name] = name
    return _table(results, _present(results, columns | {NATS: "held-out nats", "cpu_s": "CPU s"}))


def stage_table(results: Sequence[Result]) -> str:
    """Distance, nats and processor seconds under p_0, p_1, ... of the runs of which they were measured."""
    paths = {f"{result.row}, seed {result.seed}": _path(result) for result in results if result.by_stage}
    distance = _first_distance(results)
    if not paths or distance is None:
        return ""
    most = max(map(len, paths.values()))
    lines = []
    for name, path in paths.items():
        texts = [f"{_shown(of.get(distance))} / {_shown(of.get('nats'))} / {of['cpu_s']:.0f}" for of in path]
        lines.append([name, *texts, *["-"] * (most - len(path))])
    return _lines([f"{distance} / nats / CPU s", *(f"k = {k}" for k in range(most))], lines)


def _path(result: Result) -> list[Mapping[str, float]]:
    """The quantities under p_0, p_1, ..., the last ones included."""
    return [*result.by_stage, result.measured]


def _shown(value: float | None) -> str:
    return "-" if value is None else cell([value])


def anomaly_table(results: Sequence[Result], published: Mapping[str, Mapping[str, float]]) -> str:
    """AUPRC of every score, one a line, with a column for every class that was held out."""
    found = summarise(results)
    rows = list(found)
    scores = list(dict.fromkeys(name for of in found.values() for name in of if name.startswith(SCORE)))
    title = "AUPRC; the class is"
    header = [title, *(row.rpartition("-")[2] for row in rows), "mean", WORST]
    lines = []
    for label, values in published.items():
        known = [values.get(row.rpartition("-")[2]) for row in rows]
        lines.append([f"{PUBLISHED}: {label}", *("-" if one is None else f"{one:.3f}" for one in known), *_ends(known)])
    of_rows = [[result.measured for result in results if result.row == row] for row in rows]
    prevalence = [_mean([of["prevalence"] for of in several if "prevalence" in of]) for several in of_rows]
    lines.append(["chance", *("-" if one is None else f"{one:.3f}" for one in prevalence), *_ends(prevalence)])
    means = {name: [_mean(found[row].get(name)) for row in rows] for name in scores}
    for name in sorted(scores, key=lambda one: _order(means[one])):
        cells = [cell(found[row][name]) if name in found[row] else "-" for row in rows]
        lines.append([f"`{name.removeprefix(SCORE)}`", *cells, *_ends(means[name])])
    lines.append(["CPU s", *(cell(found[row]["cpu_s"]) for row in rows), "", ""])
    return _lines(header, lines)


def _order(means: Sequence[float | None]) -> float:
    known = [one for one in means if one is not None]
    return -statistics.fmean(known) if known else 0.0


def _mean(values: Sequence[float] | None) -> float | None:
    return statistics.fmean(values) if values else None


def _ends(values: Sequence[float | None]) -> list[str]:
    """Mean and least of values, or dashes where one is not known."""
    known = [one for one in values if one is not None]
    return [f"{statistics.fmean(known):.3f}", f"{min(known):.3f}"] if len(known) == len(values) else ["-", "-"]


def _published(name: str) -> dict[str, dict[str, float]]:
    file = FOLDER / f"{name}.{PUBLISHED}.json"
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _present(results: Sequence[Result], columns: Mapping[str, str]) -> dict[str, str]:
    return {name: title for name, title in columns.items() if any(name in result.measured for result in results)}


def _table(results: Sequence[Result], columns: Mapping[str, str]) -> str:
    """One line a row of the comparison; the best value of a column that has one is bold."""
    bold = best(results, [name if not name.startswith(CEILING) else "" for name in columns])
    lines = []
    for (row, texts), marks in zip(cells_by_row(results, list(columns)).items(), bold, strict=True):
        lines.append([row, *(f"**{text}**" if mark else text for text, mark in zip(texts, marks, strict=True))])
    return _lines(["row", *columns.values()], lines)


def _lines(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *lines))


def origin(small: Mapping[str, Any]) -> str:
    """A sentence on what was run, on which seeds, at which commit and where."""
    seeds = sorted({one["seed"] for one in small["results"]})
    said = f"`{small['file']}`, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    for one in small["origins"]:
        machine = one["machine"]
        where = [str(machine[key]) for key in ("processor", "gpu") if key in machine]
        where += [f"{machine['cores']} cores", f"torch {machine['torch']}"] if machine else []
        said += f"; commit {one['commit'] or 'unknown'}{' on ' + ', '.join(where) if where else ''}"
    return f"{said}.\n"


@matplotlib.rc_context(STYLE)
def figure(name: str, text: str) -> bytes:
    """Distance and nats against processor time: a dot a run, a ring at the mean of a row, a line a run's stages.

    Its description has the digest of the results' text, so that a test sees whether it is out of date.
    """
    results = results_of(json.loads(text))
    quantities = [one for one in (_first_distance(results), "nats") if one is not None]
    quantities = [one for one in quantities if any(one in result.measured for result in results)]
    drawn = Figure(figsize=(4.6 * len(quantities), 3.4), layout="constrained")
    rows = summarise(results)
    for place, quantity in enumerate(quantities):
        axes = drawn.add_subplot(1, len(quantities), place + 1)
        for index, (row, of) in enumerate(rows.items()):
            if quantity not in of:
                continue
            colour, mark = f"C{index % 5}", "os"[index // 5 % 2]
            axes.plot(of["cpu_s"], of[quantity], mark, color=colour, markersize=3, alpha=0.6)
            for path in (_path(result) for result in results if result.row == row and result.by_stage):
                known = [of for of in path if quantity in of]
                axes.plot([of["cpu_s"] for of in known], [of[quantity] for of in known], color=colour, lw=1)
            middle = statistics.fmean(of["cpu_s"]), statistics.fmean(of[quantity])
            axes.plot(*middle, mark, color=colour, markersize=8, fillstyle="none", label=row)
        axes.set(xlabel="processor seconds of training", ylabel="held-out nats" if quantity == "nats" else quantity)
        if quantity != "nats":
            axes.set_yscale("log")
    if quantities:
        drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7.5)
    out = io.BytesIO()
    about = {"Date": None, "Creator": None, "Format": None, "Type": None, "Description": digest(text)}
    drawn.savefig(out, format="svg", metadata=about)
    return re.sub(rb"[ \t]+\n", b"\n", out.getvalue())


def digest(text: str) -> str:
    """Of the text of a small form."""
    return hashlib.sha256(text.encode()).hexdigest()


def _first_distance(results: Sequence[Result]) -> str | None:
    return next((name for result in results for name in result.measured if name.startswith(("FD-", "FID"))), None)
